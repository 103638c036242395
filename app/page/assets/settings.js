// Opens and closes the settings form, which Gradio draws.
import { trigger } from "./bridge.js";
import { emit, mounted, on, state } from "./bus.js";
import { el, iconButton } from "./dom.js";

export function mount(element) {
  const dialog = document.getElementById("kw-settings");
  dialog.setAttribute("role", "dialog");
  dialog.setAttribute("aria-label", "Settings of this conversation");
  dialog.inert = true;
  on("settings", show);
  element.append(
    el(
      "div",
      { class: "kw-side-head" },
      el("h2", { text: "Settings of this conversation" }),
      iconButton("close", "Close settings", () => closeSettings() && emit("focus")),
    ),
  );
  mounted("settings");
}

export function openSettings() {
  if (closeSettings()) return;
  trigger("settings", { conversation_id: state.conversationId });
}

function show() {
  const dialog = document.getElementById("kw-settings");
  dialog.classList.add("kw-shown");
  dialog.inert = false;
  dialog.querySelector("textarea")?.focus();
}

export function closeSettings() {
  const dialog = document.getElementById("kw-settings");
  const wasOpen = dialog?.classList.contains("kw-shown") ?? false;
  if (wasOpen) {
    dialog.classList.remove("kw-shown");
    dialog.inert = true;
  }
  return wasOpen;
}
