// The empty state before the first message, and the button that shows earlier messages.
import { emit, mounted, on, state } from "./bus.js";
import * as conversation from "./conversation.js";
import { el, textButton } from "./dom.js";

export function mount(element, facts) {
  const examples = el("div", { class: "kw-examples" });
  for (const text of facts.examples) {
    examples.append(textButton(text, () => emit("example", text), { class: "kw-example", "data-testid": "example" }));
  }
  const welcome = el(
    "section",
    { class: "kw-welcome", hidden: true, "data-testid": "welcome" },
    el("h2", { text: facts.model }),
    el("p", { text: facts.good_for }),
    examples,
    el("p", { class: "kw-quiet", text: facts.panel }),
  );
  const showEarlier = () => {
    emit("earlier");
    conversation.showEarlier();
  };
  const earlier = textButton("", showEarlier, { class: "kw-earlier-button", hidden: true });
  element.append(welcome, earlier);

  on("leaving", () => {
    welcome.hidden = true;
    earlier.hidden = true;
  });
  on("thread", () => {
    welcome.hidden = state.messages.length > 0;
    earlier.hidden = state.hidden === 0;
    earlier.textContent = `Show earlier messages (${state.hidden})`;
  });
  mounted("welcome");
}
