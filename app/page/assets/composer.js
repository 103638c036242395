// The message box. What is sent leaves it at once, and comes back if the server does not take it.
import { aheadSwitch, isAheadOn } from "./ahead.js";
import { ask } from "./bridge.js";
import { on, state } from "./bus.js";
import * as conversation from "./conversation.js";
import { el, icon } from "./dom.js";
import * as drafts from "./drafts.js";
import { isComposedIn, isTouch, sends } from "./keys.js";
import { problemLine } from "./problem.js";
import { STILL_SENDING, sendingHere } from "./sending.js";

// Soon after a key: once the draft is unchanged for a moment, the model reads all of it, until Enter is pressed.
const COUNT_AFTER_MS = 30;
const COUNT_EVERY_MS = 100; // at most this often: more often than a draft takes to count as unchanged
const LARGE_DRAFT = 200000; // characters: a larger draft is counted less often
const COUNT_LARGE_EVERY_MS = 1000;
const HIGHEST_PX = 260;
const FILLS_THE_BOX = 20000; // characters, on any screen
const RUNNING = "An answer is being written. Wait for its end, or stop it.";
const EMPTY = "Write a message first.";

export function mount(element, facts) {
  const { box: problemBox, show, said } = problemLine();
  // The message box is in the page from the beginning, and may be written in already.
  const area = element.querySelector(".kw-composer-text");
  area.enterKeyHint = isTouch() ? "enter" : "send";
  const button = el("button", { type: "button", class: "kw-button kw-primary kw-send", on: { click: press } });
  const ahead = facts?.reads_ahead ? aheadSwitch(aheadChanged) : null;
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
  let isForNew = false; // what is written is for a new conversation that was asked for
  let isOwed = false; // `aside` belongs into the box as soon as the input method has composed
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
      if (text.trim()) show(sendingHere() ? RUNNING : STILL_SENDING);
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
    if (isComposedIn(area)) owe(text);
    else if (area.value && area.value === recalled) {
      aside = recalled;
      setText(text);
      toItsEnd();
    } else {
      setText(lines(text, area.value));
      toItsEnd();
    }
  }

  function owe(text) {
    aside = lines(text, aside);
    isOwed = true;
    keep();
  }

  function pay() {
    if (!isOwed || isComposedIn(area)) return;
    const text = lines(aside, area.value);
    aside = "";
    isOwed = false;
    setText(text);
    toItsEnd();
  }

  function toItsEnd() {
    area.setSelectionRange(area.value.length, area.value.length);
  }

  function recall(draft) {
    recalled = draft;
    aside = "";
    isOwed = false;
    setText(draft);
  }

  // In the conversation that is open now. A stored draft waits behind what was written before it was known.
  function settle() {
    const [written, waiting] = hasNoPlace ? [area.value, aside] : ["", ""];
    hasNoPlace = false;
    isForNew = false;
    const stored = drafts.recall(state.conversationId);
    const kept = lines(waiting, stored === state.sending?.text ? "" : stored);
    if (!written || written === kept) recall(kept);
    else {
      aside = kept;
      setText(written);
    }
  }

  function setText(text) {
    if (area.value !== text) area.value = text; // the same text again would break off an input method
    changed();
  }

  // In this tab, across a reload.
  function keep() {
    const unplaced = state.sending?.conversationId === "" ? state.sending.text : "";
    if (hasNoPlace) drafts.keepUnplaced(area.value, lines(unplaced, aside), isForNew);
    else {
      drafts.keepUnplaced("", unplaced, false);
      drafts.remember(state.conversationId, area.value, aside);
    }
  }

  // On a phone the focus would bring up the keyboard over the answer. It is not taken from what is written elsewhere.
  function focus() {
    if (matchMedia("(hover: hover)").matches && !document.activeElement?.matches("input, textarea")) area.focus();
  }

  function changed() {
    // To measure a text, the browser lays out all of it.
    const fills = area.value.length > FILLS_THE_BOX;
    if (!fills) area.style.height = "auto";
    area.style.height = `${fills ? HIGHEST_PX : Math.min(HIGHEST_PX, area.scrollHeight)}px`;
    keep();
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

  function aheadChanged() {
    if (isAheadOn(ahead)) changed();
    else forgetDraft();
    area.focus();
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
  area.addEventListener("compositionend", () => setTimeout(pay)); // its last input may follow
  area.addEventListener("keydown", (event) => {
    if (!sends(event)) return;
    event.preventDefault();
    submit();
  });
  on("problem", show);
  on("focus", () => area.focus());
  on("example", (text) => submit(text));
  on("draft", (text) => {
    if (isComposedIn(area)) owe(text);
    else if (!area.value) setText(text);
    else if (area.value !== text) {
      aside = lines(aside, text);
      changed();
    }
    focus();
  });
  for (const name of ["run", "sending"]) {
    on(name, () => {
      drawButton();
      const isOver = { [RUNNING]: !isBusy(), [STILL_SENDING]: !state.sending };
      if (isOver[said()]) show("");
      if (name === "sending") keep();
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
    settle();
  });
  on("beginning", () => {
    isForNew = true;
    if (hasNoPlace) return;
    hasNoPlace = true;
    recall("");
  });
  // The conversation that was open stays, because it is empty or because there is no other.
  on("begun", () => {
    if (hasNoPlace && state.conversationId) settle();
  });
  on("opened", focus);
  drawButton();
  // What was written in this tab before a reload, without a conversation yet.
  const left = drafts.unplaced();
  const before = left ? lines(left.earlier, left.text === area.value ? "" : left.text) : "";
  if (area.value) aside = before;
  else area.value = before;
  const entered = area.dataset.entered; // before this script had come: first.js
  if (entered) queueMicrotask(() => submit(entered)); // once all parts are there
}

function lines(...texts) {
  return texts.filter(Boolean).join("\n");
}
