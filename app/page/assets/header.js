// The header: the title, the model, and the buttons for both sidebars and the settings.
import { on, state } from "./bus.js";
import { el, iconButton } from "./dom.js";
import * as page from "./page.js";
import { openSettings } from "./settings.js";
import { isAnythingUnread } from "./unread.js";

export function mount(element, facts) {
  const title = el("h1", { class: "kw-title", dir: "auto", "data-testid": "title" });
  const share = el("p", { class: "kw-share", role: "status", hidden: true });
  const trouble = el("p", { class: "kw-trouble", role: "alert", hidden: true, "data-testid": "trouble" });
  const model = el("p", { class: "kw-model", "data-testid": "model", text: facts.running });
  model.title = [`Runs on ${facts.device}.`, ...facts.notes].join("\n");
  const left = iconButton("panelLeft", "Conversations", () => page.toggle("left"), { id: "kw-toggle-left" });
  const right = iconButton("panelRight", "Memory", () => page.toggle("right"), { id: "kw-toggle-right" });
  const settings = iconButton("sliders", "Settings of this conversation", openSettings, { id: "kw-open-settings" });
  element.replaceChildren(
    el("header", { class: "kw-header" }, left, el("div", { class: "kw-heading" }, title, model), settings, right),
    share,
    trouble,
  );

  const draw = () => {
    title.textContent = state.title || "New conversation";
    const mark = isAnythingUnread() ? "● " : "";
    document.title = mark + (state.title ? `${state.title} · Keepwarm` : "Keepwarm");
  };
  on("thread", draw);
  on("unread", draw);
  on("renamed", (name) => {
    state.title = name;
    draw();
  });
  on("pulse", (news) => {
    const here = news.rows.find((row) => row.id === state.conversationId);
    if (here && state.title && here.title !== state.title) {
      state.title = here.title; // the model wrote a title
      draw();
    }
    if (share.textContent !== news.share) share.textContent = news.share;
    share.hidden = !news.share;
  });
  on("trouble", (sentence) => {
    if (trouble.textContent !== sentence) trouble.textContent = sentence;
    trouble.hidden = !sentence;
  });
}
