// What a key press means, which depends on the device and on the input method.

const TOUCH = matchMedia("(pointer: coarse)");

// Whether the key belongs to the input method, which is composing text. Safari says so of the Enter that confirms a
// conversion only by the key code 229.
export function isComposing(event) {
  return event.isComposing || event.keyCode === 229;
}

let composed = null; // the field in which an input method composes
document.addEventListener("compositionstart", (event) => {
  composed = event.target;
});
document.addEventListener("compositionend", () => {
  composed = null;
});

// Whether an input method composes in this field: a value that is set meanwhile would break that off.
export function isComposedIn(field) {
  return composed === field;
}

// Whether Enter on this device writes a new line, because its keyboard has no Shift+Enter.
export function isTouch() {
  return TOUCH.matches;
}

// Whether this key press sends what is written in a text area.
export function sends(event) {
  if (event.key !== "Enter" || isComposing(event)) return false;
  return event.ctrlKey || event.metaKey || !(event.shiftKey || isTouch());
}
