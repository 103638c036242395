// The message box. What is sent leaves it at once, and comes back if the server does not take it.
import { ask } from "./bridge.js";
import { on, state } from "./bus.js";
import * as conversation from "./conversation.js";
import { el, icon, iconButton, textButton } from "./dom.js";
import * as drafts from "./drafts.js";
import { isTouch, sends } from "./keys.js";
import { sendingHere } from "./sending.js";
import { browserStorage } from "./storage.js";

// Soon after a key: once the draft is unchanged for a moment, the model reads all of it, until Enter is pressed.
const COUNT_AFTER_MS = 30;
const COUNT_EVERY_MS = 100; // at most this often: more often than a draft takes to count as unchanged
const LARGE_DRAFT = 200000; // characters: a larger draft is counted less often
const COUNT_LARGE_EVERY_MS = 1000;
const HIGHEST_PX = 260;
const FILLS_THE_BOX = 20000; // characters, on any screen
const RUNNING = "An answer is being written. Wait for its end, or stop it.";
const EMPTY = "Write a message first.";
const SENDING = "Another message is still being sent.";

export function mount(element, facts) {
  const problem = el("p", { class: "kw-problem", role: "alert", "data-testid": "problem" });
  const remedy = el("span", { class: "kw-remedy" });
  const problemBox = el(
    "div",
    { class: "kw-problem-box", hidden: true },
    problem,
    remedy,
    iconButton("close", "Dismiss", () => show("")),
  );
  // The message box is in the page from the beginning, and may be written in already.
  const area = element.querySelector(".kw-composer-text");
  area.enterKeyHint = isTouch() ? "enter" : "send";
  const button = el("button", { type: "button", class: "kw-button kw-primary kw-send", on: { click: press } });
  const ahead = facts?.reads_ahead ? aheadSwitch() : null;
  const count = el("span", { class: "kw-count kw-figures", "data-testid": "count" });
  const context = el("span", { class: "kw-context", "data-testid": "context" });
  const contextFill = el("span", { class: "kw-context-fill" });
  const contextLabel = el("span", { class: "kw-figures" });
  context.append(
    el("span", { text: "context" }),
    el("span", { class: "kw-context-bar", "aria-hidden": "true" }, contextFill),
    contextLabel,
  );
  element.prepend(problemBox);
  area.parentElement.addEventListener("click", (event) => event.target === event.currentTarget && area.focus());
  area.nextElementSibling.replaceChildren(context, ...(ahead ? [ahead] : []), count, button);

  let hasNoPlace = true; // what is written belongs to a conversation that is asked for
  let recalled = ""; // the stored draft that was put into the box
  let aside = ""; // a stored draft, as long as the box holds what was written before the draft could be put there
  let counter = 0;
  let countedAt = -Infinity;
  let counting = false;
  let wasRead = ""; // the conversation whose draft the model has begun to read

  function press(event) {
    if (event.detail > 1) return; // the second half of a double click: it stops nothing
    if (isBusy()) conversation.stop();
    else submit();
    area.focus();
  }

  function isBusy() {
    return state.run !== null || sendingHere() !== null;
  }

  async function submit(text = area.value) {
    if (state.sending) {
      if (text.trim()) show(sendingHere() ? RUNNING : SENDING);
    } else if (state.run && !hasNoPlace) show(RUNNING);
    else if (!text.trim()) show(EMPTY);
    else {
      const isFromBox = area.value.startsWith(text);
      if (isFromBox) takeOut(text);
      const isSettled = await conversation.send(text);
      if (!isSettled && (isFromBox || !area.value)) putBack(text);
    }
  }

  // What is sent leaves the box. In an empty box there is room for what was put aside.
  function takeOut(text) {
    wasRead = "";
    const rest = area.value.slice(text.length);
    if (rest) setText(rest);
    else recall(aside);
  }

  // Before what was written meanwhile; a stored draft waits again.
  function putBack(text) {
    if (area.value && area.value === recalled) {
      aside = recalled;
      setText(text);
    } else setText([text, area.value].filter(Boolean).join("\n"));
    area.setSelectionRange(area.value.length, area.value.length);
  }

  function recall(draft) {
    recalled = draft;
    aside = "";
    setText(draft);
  }

  // In the conversation that is open now. A stored draft waits behind what was written before it was known.
  function settle(written) {
    const stored = drafts.recall(state.conversationId);
    const kept = stored === state.sending?.text ? "" : stored;
    if (!written || written === kept) recall(kept);
    else {
      aside = kept;
      setText(written);
    }
  }

  function setText(text) {
    area.value = text;
    changed();
  }

  // On a phone the focus would bring up the keyboard over the answer.
  function focus() {
    if (matchMedia("(hover: hover)").matches) area.focus();
  }

  function changed() {
    // To measure a text, the browser lays out all of it.
    const fills = area.value.length > FILLS_THE_BOX;
    if (!fills) area.style.height = "auto";
    area.style.height = `${fills ? HIGHEST_PX : Math.min(HIGHEST_PX, area.scrollHeight)}px`;
    if (!hasNoPlace) drafts.remember(state.conversationId, area.value, aside);
    if (!area.value.trim()) {
      clearTimeout(counter);
      counter = 0;
      count.textContent = "";
      count.classList.remove("kw-too-long");
      forgetDraft();
    } else if (!counter && !hasNoPlace) {
      // Not delayed by every key: a person who keeps typing is read ahead too.
      const every = area.value.length > LARGE_DRAFT ? COUNT_LARGE_EVERY_MS : COUNT_EVERY_MS;
      counter = setTimeout(countDraft, Math.max(COUNT_AFTER_MS, countedAt + every - performance.now()));
    }
  }

  async function countDraft() {
    counter = 0;
    if (counting) {
      counter = setTimeout(countDraft, COUNT_EVERY_MS);
      return;
    }
    counting = true;
    countedAt = performance.now();
    const draft = area.value;
    const id = state.conversationId;
    const details = { conversation_id: id, draft, ahead: isAheadOn(ahead) && !state.sending };
    if (details.ahead) wasRead = id;
    const reply = await ask("count", details);
    counting = false;
    if (draft !== area.value || id !== state.conversationId) return area.value.trim() ? changed() : undefined;
    if (reply.error) return;
    count.textContent = reply.label;
    count.classList.toggle("kw-too-long", !reply.fits);
  }

  // The draft is gone, or must not be read any more: the part that was read is cropped from the KV.
  function forgetDraft() {
    if (wasRead) ask("count", { conversation_id: wasRead, draft: "", ahead: true });
    wasRead = "";
  }

  function aheadSwitch() {
    const toggle = textButton("Read as I type", () => {
      toggle.setAttribute("aria-pressed", String(!isAheadOn(toggle)));
      keepChoice(isAheadOn(toggle));
      if (isAheadOn(toggle)) changed();
      else forgetDraft();
      area.focus();
    });
    toggle.classList.add("kw-ahead");
    toggle.dataset.testid = "read-ahead";
    toggle.title = "Read my message while I type, so that sending it costs almost nothing. A draft is never stored.";
    toggle.setAttribute("aria-pressed", String(keptChoice()));
    return toggle;
  }

  // `news` is a sentence, "" for none, or a sentence with a remedy: {text, label, press}.
  function show(news) {
    const { text, label, press: remedies } = typeof news === "string" ? { text: news } : news;
    problem.textContent = text;
    problemBox.hidden = !text;
    remedy.replaceChildren(...(label ? [textButton(label, remedies, { class: "kw-small" })] : []));
  }

  function drawButton() {
    const running = isBusy();
    const label = running ? "Stop" : "Send";
    if (button.dataset.label === label) return;
    button.dataset.label = label;
    button.setAttribute("aria-label", label);
    button.title = running ? "Stop (Esc)" : isTouch() ? "Send" : "Send (Enter)";
    button.dataset.testid = label.toLowerCase();
    button.classList.toggle("kw-stop", running);
    button.disabled = false;
    button.replaceChildren(icon(running ? "stop" : "up"));
  }

  function drawContext() {
    if (!state.context) return;
    contextLabel.textContent = state.context.label;
    contextFill.style.transform = `scaleX(${state.context.fraction})`;
    contextFill.classList.toggle("kw-nearly-full", state.context.fraction > 0.9);
  }

  area.addEventListener("input", changed);
  area.addEventListener("keydown", (event) => {
    if (!sends(event)) return;
    event.preventDefault();
    submit();
  });
  on("problem", show);
  on("focus", () => area.focus());
  on("example", (text) => submit(text));
  on("draft", (text) => {
    if (!area.value) setText(text);
    else if (area.value !== text) {
      aside = [aside, text].filter(Boolean).join("\n");
      changed();
    }
    focus();
  });
  for (const name of ["run", "sending"]) {
    on(name, () => {
      drawButton();
      if (!isBusy() && problem.textContent === RUNNING) show("");
    });
  }
  // What came back because its reply was lost had arrived: it is above.
  on("arrived", (text) => {
    if (area.value !== text) return;
    recall(aside);
    show("");
  });
  on("thread", drawContext);
  on("stopping", () => {
    button.disabled = true; // until the end of the run redraws it
  });
  on("sent", focus);
  // At once, not when the conversation has loaded: what is written or counted until then belongs to the new one.
  on("leaving", () => {
    show("");
    const written = hasNoPlace ? area.value : "";
    hasNoPlace = false;
    settle(written);
  });
  on("beginning", () => {
    if (hasNoPlace) return;
    hasNoPlace = true;
    setText("");
  });
  // The conversation that was open stays, because it is empty or because there is no other.
  on("begun", () => {
    if (!hasNoPlace || !state.conversationId) return;
    hasNoPlace = false;
    settle(area.value);
  });
  on("opened", focus);
  drawButton();
  const entered = area.dataset.entered; // before this script had come: first.js
  if (entered) queueMicrotask(() => submit(entered)); // once all parts are there
}

function isAheadOn(toggle) {
  return toggle?.getAttribute("aria-pressed") === "true";
}

// The choice is stored in this browser.

function keepChoice(on) {
  browserStorage.set("kw-read-ahead", on ? "on" : "off");
}

function keptChoice() {
  return browserStorage.get("kw-read-ahead") !== "off";
}
