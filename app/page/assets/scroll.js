// Keeps the end in view while text grows, until the person scrolls up; then a button leads back.
import { on } from "./bus.js";
import { el, icon } from "./dom.js";
import { sendingHere } from "./sending.js";

const NEAR_PX = 48;
const INPUT_MS = 800;
const FOUND_MS = 2500;

// Runs `draw`, which may put rows above those that are seen: the line that is being read stays where it is.
export function keepingPlace(list, draw) {
  const scroller = list.closest("#kw-scroll");
  const edge = scroller.getBoundingClientRect().top;
  const row = [...list.children].find((one) => one.getBoundingClientRect().bottom > edge);
  const before = row?.getBoundingClientRect().top;
  const first = list.firstElementChild;
  draw();
  if (!row?.isConnected || list.firstElementChild === first) return;
  scroller.scrollTop += row.getBoundingClientRect().top - before;
}

export function followEnd(scroller, contents) {
  let pinned = true;
  const button = el(
    "button",
    {
      type: "button",
      id: "kw-to-end",
      class: "kw-button",
      "aria-label": "To the end",
      title: "To the end",
      hidden: true,
    },
    icon("down"),
  );
  scroller.after(button);

  const isNear = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_PX;
  const toEnd = () => {
    scroller.scrollTop = scroller.scrollHeight;
  };
  const pin = (value) => {
    pinned = value;
    button.hidden = pinned || isNear();
  };

  // While messages move, the browser scrolls too; only scrolling right after an input event is a person's.
  let inputUntil = 0;
  const noteInput = () => {
    inputUntil = performance.now() + INPUT_MS;
  };
  for (const type of ["wheel", "touchmove", "pointerdown", "keydown"]) {
    scroller.addEventListener(type, noteInput, { passive: true });
  }
  scroller.addEventListener(
    "scroll",
    () => {
      if (isNear()) pin(true);
      else if (performance.now() < inputUntil) {
        noteInput();
        pin(false);
      }
    },
    { passive: true },
  );
  scroller.addEventListener("wheel", (event) => event.deltaY < 0 && pin(false), { passive: true });
  button.addEventListener("click", () => {
    pin(true);
    toEnd();
  });
  // Where a searched text stands, by the message's place in what is shown.
  on("found", (index) => {
    const row = document.querySelector(`[data-testid="message-${index}"]`);
    if (!row) return;
    pin(false);
    row.scrollIntoView({ block: "center" });
    row.classList.add("kw-found");
    setTimeout(() => row.classList.remove("kw-found"), FOUND_MS);
  });
  const observer = new ResizeObserver(() => (pinned ? toEnd() : pin(false)));
  for (const content of [scroller, ...contents]) observer.observe(content);
  for (const name of ["earlier", "editor"]) on(name, () => pin(false));
  for (const name of ["leaving", "sent", "sending"]) {
    on(name, () => {
      if (name === "sending" && !sendingHere()) return;
      pin(true);
      toEnd();
    });
  }
}
