// The sentence above the message box: what did not work, and what can be done.
import { el, iconButton, textButton } from "./dom.js";

// `show` takes a sentence, "" for none, or a sentence with a remedy: {text, label, press}. `said` gives the sentence.
export function problemLine() {
  const sentence = el("p", { class: "kw-problem", role: "alert", "data-testid": "problem" });
  const remedy = el("span", { class: "kw-remedy" });
  const dismiss = iconButton("close", "Dismiss", () => show(""));
  const box = el("div", { class: "kw-problem-box", hidden: true }, sentence, remedy, dismiss);
  function show(news) {
    const { text, label, press } = typeof news === "string" ? { text: news } : news;
    sentence.textContent = text;
    box.hidden = !text;
    remedy.replaceChildren(...(label ? [textButton(label, press, { class: "kw-small" })] : []));
  }
  return { box, show, said: () => sentence.textContent };
}
