// The empty state before the first message, and the button that shows earlier messages.
import { emit, on, state } from "./bus.js";
import * as conversation from "./conversation.js";
import { textButton } from "./dom.js";
import { isApart, sendingHere } from "./sending.js";

// The empty state is in the page from the beginning: see app/page/first/frame.py.
export function mount(element) {
  const welcome = element.querySelector(".kw-welcome");
  for (const button of welcome.querySelectorAll(".kw-example")) {
    button.addEventListener("click", () => emit("example", button.textContent));
  }
  const showEarlier = () => {
    emit("earlier");
    conversation.showEarlier();
  };
  const earlier = textButton("", showEarlier, { class: "kw-earlier-button", hidden: true });
  element.append(earlier);

  on("leaving", () => {
    if (state.drawn) welcome.hidden = true; // at the start it is what will be seen, or first.js has hidden it
    earlier.hidden = true;
  });
  on("sending", () => {
    welcome.hidden = hasMessages();
    earlier.hidden = state.hidden === 0 || isApart();
  });
  on("thread", () => {
    document.documentElement.classList.remove("kw-named");
    welcome.hidden = hasMessages();
    earlier.hidden = state.hidden === 0;
    earlier.textContent = `Show earlier messages (${state.hidden})`;
  });
}

function hasMessages() {
  return state.messages.length > 0 || state.waiting !== null || sendingHere() !== null;
}
