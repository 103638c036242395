// Shows the sentence behind a word, [data-hint], on hover and on focus. Esc hides it.
import { el } from "./dom.js";

const GAP_PX = 6;
const EDGE_PX = 8;
let bubble = null;
let owner = null;

export function startHints() {
  bubble = el("div", { id: "kw-hint", role: "tooltip", hidden: true });
  document.getElementById("kw").append(bubble);
  document.addEventListener("pointerover", (event) => show(event.target.closest?.("[data-hint]")));
  document.addEventListener("focusin", (event) => show(event.target.closest?.("[data-hint]")));
  document.addEventListener("focusout", () => show(null));
  document.addEventListener("scroll", () => show(null), { capture: true, passive: true });
  document.addEventListener(
    "keydown",
    (event) => {
      if (event.key === "Escape") show(null);
    },
    { capture: true },
  );
}

function show(node) {
  if (node === owner) return;
  owner?.removeAttribute("aria-describedby");
  owner = node ?? null;
  bubble.hidden = !owner;
  if (!owner) return;
  bubble.textContent = owner.dataset.hint;
  owner.setAttribute("aria-describedby", bubble.id);
  const box = owner.getBoundingClientRect();
  const { width, height } = bubble.getBoundingClientRect();
  const left = Math.max(EDGE_PX, Math.min(box.left, innerWidth - width - EDGE_PX));
  const above = box.top - height - GAP_PX;
  bubble.style.left = `${left}px`;
  bubble.style.top = `${above >= EDGE_PX ? above : box.bottom + GAP_PX}px`;
}
