// The switch below the message box: whether the model reads a message while it is written. Stored in this browser.
import { textButton } from "./dom.js";
import { browserStorage } from "./storage.js";

const KEY = "kw-read-ahead";

export function aheadSwitch(changed) {
  const toggle = textButton("Read as I type", () => {
    const isOn = !isAheadOn(toggle);
    toggle.setAttribute("aria-pressed", String(isOn));
    browserStorage.set(KEY, isOn ? "on" : "off");
    changed();
  });
  toggle.classList.add("kw-ahead");
  toggle.dataset.testid = "read-ahead";
  toggle.title = "Read my message while I type, so that sending it costs almost nothing. A draft is never stored.";
  toggle.setAttribute("aria-pressed", String(browserStorage.get(KEY) !== "off"));
  return toggle;
}

export function isAheadOn(toggle) {
  return toggle?.getAttribute("aria-pressed") === "true";
}
