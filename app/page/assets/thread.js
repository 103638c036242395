// The messages, and below each its progress, receipt and actions.
import { emit, on, state } from "./bus.js";
import * as conversation from "./conversation.js";
import { copyFrom, el, icon, iconButton, term, textButton } from "./dom.js";
import * as drafts from "./drafts.js";
import { isComposing, sends } from "./keys.js";
import { drawProgress, progressFoot } from "./progress.js";
import { reachable } from "./reach.js";
import { followEnd, keepingPlace } from "./scroll.js";
import { isApart, STILL_SENDING, sendingHere } from "./sending.js";
import { drawWithThoughts } from "./thoughts.js";
import { showTyped } from "./typed.js";

let openReceipts = new Set();
let rows = new Map(); // by the message's key
let list = null;
let pending = null; // the row of a new message that is on its way

export function mount(element) {
  list = el("div", { class: "kw-thread", role: "log", "aria-label": "Conversation" });
  element.append(list);
  const ghosts = element.querySelector(".kw-ghosts");
  followEnd(document.getElementById("kw-scroll"), [list]);
  on("thread", () => {
    ghosts.remove();
    if (list.firstElementChild === (rows.get(state.messages[0]?.key) ?? null)) drawThread();
    else keepingPlace(list, drawThread);
  });
  on("answer", () => drawWithThoughts(text(list.lastElementChild), state.answer, state.thoughts));
  on("run", () => {
    document.getElementById("kw").classList.toggle("kw-busy", state.run !== null);
    drawProgress();
  });
  on("leaving", () => {
    openReceipts = new Set();
    drawPending();
  });
  on("sending", drawPending);
}

// A new message that is on its way stands at the end.
function drawPending() {
  const here = sendingHere();
  const isNew = here !== null && !here.editing;
  list.classList.toggle("kw-apart", isApart());
  if (!isNew) {
    pending?.remove();
    pending = null;
    return;
  }
  if (!pending) {
    pending = build({ role: "user", text: here.text });
    pending.kwText = here.text;
    onItsWay(pending);
  }
  pending.dataset.testid = `message-${state.messages.length}`;
  if (list.lastElementChild !== pending) list.append(pending);
}

function onItsWay(row) {
  row.classList.add("kw-sending");
  row.setAttribute("aria-label", "You, not sent yet");
  const word = el("span", { class: "kw-sending-word", text: "Sending" });
  row.querySelector(":scope > .kw-foot").replaceChildren(word);
}

function arrived(row) {
  row.classList.remove("kw-sending");
  row.setAttribute("aria-label", "You");
}

// The row that stood for a message on its way goes on as that message.
function adoptPending() {
  if (!pending || state.sending) return;
  const message = state.messages.findLast((one) => one.role === "user" && !rows.has(one.key));
  if (message?.text !== pending.kwText) return;
  arrived(pending);
  pending.querySelector(":scope > .kw-foot").replaceChildren();
  rows.set(message.key, pending);
  pending = null;
}

function drawThread() {
  adoptPending();
  const fresh = new Map();
  // First, or the rows that stay would all be moved to the place before them.
  const keys = new Set(state.messages.map((message) => message.key));
  for (const [key, row] of rows) if (!keys.has(key)) row.remove();
  state.messages.forEach((message, index) => {
    const row = rows.get(message.key) ?? build(message);
    fresh.set(message.key, row);
    if (list.children[index] !== row) list.insertBefore(row, list.children[index] ?? null);
    row.dataset.testid = `message-${index}`;
    const last = index === state.messages.length - 1;
    if (row.kwDrawn === message && !last && !row.kwWasLast) return; // of hundreds, only what changed is looked at
    row.kwDrawn = message;
    row.kwWasLast = last;
    row.setAttribute("aria-busy", String(last && state.run !== null));
    if (message.role !== "user") drawWithThoughts(text(row), message.blocks, message.thoughts);
    drawFoot(row, message, last);
  });
  rows = fresh;
  drawPending();
  drawProgress();
}

// A person's message is shown exactly as written; the style preserves its spaces.
function build(message) {
  const yours = message.role === "user";
  const body = el("div", { class: "md", dir: yours ? "auto" : null });
  if (yours) showTyped(body, message.text);
  const box = el("div", { class: "kw-message" }, body);
  reachable(yours ? box : body);
  return el(
    "div",
    { class: `message-row ${yours ? "user-row" : "bot-row"}`, role: "article", "aria-label": yours ? "You" : "Answer" },
    box,
    el("div", { class: "kw-foot" }),
  );
}

function text(row) {
  return row.querySelector(":scope > .kw-message > .md");
}

function drawFoot(row, { blocks: _, thoughts: __, ...message }, last) {
  const signature = JSON.stringify([message, last, last && state.run !== null]);
  const foot = row.querySelector(":scope > .kw-foot");
  if (foot.dataset.signature === signature || foot.querySelector(".kw-editor, .kw-sending-word")) return;
  row.classList.remove("kw-editing");
  const fresh = draw(row, message, last);
  fresh.dataset.signature = signature;
  foot.replaceWith(fresh);
}

function draw(row, message, last) {
  if (message.role === "user") return el("div", { class: "kw-foot" }, actions(row, message, last));
  if (last && state.run) return progressFoot();
  const [line, details] = receipt(message);
  return el(
    "div",
    { class: "kw-foot" },
    note(message),
    el("div", { class: "kw-foot-line" }, line, actions(row, message, last)),
    details,
  );
}

function note(message) {
  if (!message.status_word && !message.note) return null;
  return el(
    "p",
    { class: `kw-note kw-note-${message.status}` },
    message.status_word ? el("span", { class: "kw-note-word", text: message.status_word }) : null,
    message.note ? el("span", { text: message.note }) : null,
  );
}

function receipt(message) {
  if (!message.receipt) return [null, null];
  const key = String(message.id);
  const details = el("dl", { class: "kw-receipt-details", id: `kw-receipt-${key}` });
  for (const [name, value, hint] of message.receipt.details)
    details.append(el("dt", {}, term(name, hint)), el("dd", { text: value }));
  const button = el("button", {
    type: "button",
    class: `kw-receipt${message.receipt.missed ? " kw-receipt-missed" : ""}`,
    "aria-controls": details.id,
    title: "What this turn cost",
    on: { click: () => show(!openReceipts.has(key)) },
  });
  button.append(el("span", { text: message.receipt.line }), icon("right"));
  const show = (open) => {
    if (open) openReceipts.add(key);
    else openReceipts.delete(key);
    button.setAttribute("aria-expanded", String(open));
    details.hidden = !open;
  };
  show(openReceipts.has(key));
  return [button, details];
}

function actions(row, message, last) {
  const bar = el("div", { class: "kw-actions" });
  if (message.role === "assistant" && last) {
    if (message.can_continue) {
      const label = el("span", { text: "Continue" });
      const button = textButton("", conversation.continueAnswer, { class: "kw-small", "data-testid": "continue" });
      button.append(icon("forward"), label);
      bar.append(button);
    }
    bar.append(iconButton("retry", "Answer again", conversation.regenerate, { "data-testid": "regenerate" }));
  }
  if (message.role === "user") {
    bar.append(iconButton("pencil", "Edit this message", () => edit(row, message), { "data-testid": "edit" }));
  }
  bar.append(
    iconButton("copy", "Copy", (event) => copyFrom(event.currentTarget, message.text), { "data-testid": "copy" }),
  );
  if (message.sibling_count > 1) bar.append(siblings(message));
  return bar;
}

function siblings(message) {
  const step = (by) => () => conversation.switchSibling(message.id, by);
  const { sibling_number: number, sibling_count: count } = message;
  return el(
    "span",
    { class: "kw-siblings", role: "group", "aria-label": "Versions" },
    iconButton("left", "Previous version", step(-1), { disabled: number <= 1, "data-testid": "previous" }),
    el("span", { class: "kw-figures", text: `${number}/${count}`, "data-testid": "sibling" }),
    iconButton("right", "Next version", step(1), { disabled: number >= count, "data-testid": "next" }),
  );
}

function edit(row, message) {
  const area = el("textarea", {
    class: "kw-editor-text",
    dir: "auto",
    "aria-label": "Edit this message",
    "data-testid": "editor",
  });
  const place = [state.conversationId, message.id];
  area.value = drafts.recallEdit(...place) ?? message.text;
  area.addEventListener("input", () => drafts.rememberEdit(...place, area.value));
  const foot = row.querySelector(":scope > .kw-foot");
  const close = () => {
    row.classList.remove("kw-editing");
    foot.replaceChildren();
    delete foot.dataset.signature;
    row.kwDrawn = null;
    drawThread();
  };
  const body = text(row);
  const show = (written) => {
    body.replaceChildren();
    showTyped(body, written);
  };
  // The new version stands in the place of the old one meanwhile. If the server does not take it, it is edited again.
  const submit = async () => {
    if (state.sending) {
      emit("problem", STILL_SENDING);
      return;
    }
    const editor = foot.firstElementChild;
    row.classList.remove("kw-editing");
    show(area.value);
    onItsWay(row);
    const isSent = await conversation.edit(message.id, area.value);
    arrived(row);
    if (isSent) {
      drafts.forgetEdit(...place);
      close(); // the row is gone already, if its conversation is shown
      return;
    }
    show(message.text);
    row.classList.add("kw-editing");
    foot.replaceChildren(editor);
    if (document.activeElement === document.body) area.focus(); // else the person is writing somewhere else
  };
  const cancel = () => {
    drafts.forgetEdit(...place);
    close();
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !isComposing(event)) {
      event.stopPropagation();
      cancel();
      emit("focus");
    } else if (sends(event)) {
      event.preventDefault();
      submit();
    }
  });
  row.classList.add("kw-editing");
  emit("editor"); // it is looked at now, not the end of the conversation
  foot.replaceChildren(
    el(
      "div",
      { class: "kw-editor" },
      area,
      el(
        "div",
        { class: "kw-editor-bar" },
        el("span", { class: "kw-hint", text: "The old version stays: switch with the arrows." }),
        textButton("Cancel", cancel),
        textButton("Send", submit, { class: "kw-primary", "data-testid": "editor-send" }),
      ),
    ),
  );
  area.style.height = `${Math.min(320, area.scrollHeight + 2)}px`;
  area.focus();
}
