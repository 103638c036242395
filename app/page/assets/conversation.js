// The open conversation: actions on it, and following its running answer.
import * as address from "./address.js";
import { act, ask } from "./bridge.js";
import { emit, state } from "./bus.js";
import * as drafts from "./drafts.js";
import * as tabs from "./tabs.js";

const UPDATE_MS = 110; // nine updates a second
const SHOWN = 30;
const MEMORY_MS = 1000; // how often the memory panel is updated during a run
const UNKNOWN = "That conversation no longer exists, or it belongs to someone else. This is a new one.";
const DELETED = "This conversation was deleted in another tab or on another device. What you wrote is still here.";
let following = false;
let held = new Map(); // the blocks of the growing answer by key

let begun = Promise.resolve();

// Opens the conversation that the address names, or an empty one.
export function begin(conversationId) {
  begun = conversationId ? open(conversationId, "replace") : openNew("replace");
  return begun;
}

// Opens a conversation. `how` it gets into the browser's history: see address.js. With `find`, a searched text, it is
// shown where that text stands.
export async function open(conversationId, how = "push", find = "") {
  const changed = conversationId !== state.conversationId;
  if (changed) {
    state.conversationId = conversationId;
    state.shown = SHOWN;
    state.run = null;
    held = new Map();
    address.show(conversationId, how);
    tabs.note(conversationId);
    emit("leaving");
  }
  emit("selected", conversationId);
  const reply = await perform("open", find ? { find } : {}, conversationId);
  if (reply?.gone) {
    // Not at the start: whoever wrote it in this tab may have logged out, and someone else in.
    const draft = how === "push" ? drafts.recall(conversationId) : "";
    if (!(await openNew("replace"))) return;
    emit("problem", UNKNOWN);
    if (!draft) return;
    drafts.forget(conversationId);
    emit("draft", draft);
    return;
  }
  if (changed) emit("opened");
  if (reply?.found !== undefined) emit("found", reply.found);
}

// An empty conversation with the settings that it has: the one that is open if it is still empty, none that another tab
// has open. False if the server gave none, and said why. What is written and sent meanwhile is for that one.
export function openNew(how = "push") {
  emit("beginning");
  const opened = askNew(how).finally(() => {
    if (begun === opened) begun = Promise.resolve();
    emit("begun");
  });
  begun = opened;
  return opened;
}

async function askNew(how) {
  const reply = await ask("new", { taken: tabs.openElsewhere().join(",") });
  if (reply.error) emit("problem", reply.error);
  else await open(reply.conversation_id, how);
  return !reply.error;
}

export async function showEarlier() {
  // As a detail: a reply that is under way to an earlier question may set `state.shown` back before this one is asked.
  state.shown += SHOWN;
  await perform("open", { shown: state.shown });
}

// A part at a time, so that the page stays usable.
export async function showAll() {
  const id = state.conversationId;
  while (state.hidden > 0 && id === state.conversationId) {
    const before = state.hidden;
    await showEarlier();
    if (state.hidden === before) return; // the server said why
  }
}

export async function send(text) {
  // Without the new conversation that was asked for, the text stays in the box: it is not for the old one.
  if ((await begun) === false && state.conversationId) return null;
  if (!state.conversationId) {
    // The server could not give one before.
    if (!(await openNew("replace"))) return null;
    emit("draft", text);
  }
  const reply = await perform("send", { text });
  if (reply && !reply.error) emit("sent");
  return reply;
}

export const regenerate = () => turn("regenerate");
export const continueAnswer = () => turn("continue");
export const edit = (messageId, text) => turn("edit", { message_id: messageId, text });
export const switchSibling = (messageId, step) => perform("switch", { message_id: messageId, step });

export async function stop() {
  if (!state.run) return;
  emit("stopping");
  const reply = await ask("stop", { conversation_id: state.conversationId });
  if (reply.error) emit("problem", reply.error);
}

async function turn(action, details) {
  const reply = await perform(action, details);
  if (reply && !reply.error) emit("sent");
  return reply;
}

async function perform(action, details = {}, conversationId = state.conversationId) {
  const current = () => conversationId === state.conversationId;
  // When its turn comes: the reply before may have shown more.
  const asked = () => ({ conversation_id: conversationId, shown: state.shown, have: tokens(), ...details });
  const reply = await act(action, asked, current);
  // Also if another conversation was opened meanwhile: what was sent is no draft any more.
  if (action === "send" && reply && !reply.error) drafts.sent(conversationId, details.text);
  if (!reply || !current()) return null;
  if (reply.error) {
    if (!reply.gone) emit("problem", reply.error);
    else if (action !== "open") offerNew();
    return reply;
  }
  if (action !== "open") emit("problem", "");
  take(reply);
  follow();
  return reply;
}

// The open conversation was deleted elsewhere. What is shown can still be read and copied.
export function offerNew() {
  if (state.removing === state.conversationId) return; // deleted here: another one opens in a moment
  state.run = null;
  emit("run");
  emit("problem", { text: DELETED, label: "Continue in a new conversation", press: moveOn });
}

async function moveOn() {
  const old = state.conversationId;
  const draft = drafts.recall(old);
  if (!(await openNew("replace"))) return;
  drafts.forget(old);
  if (draft) emit("draft", draft);
}

// Of the messages that the page has, so that they are not sent again.
function tokens() {
  return state.drawn === state.conversationId ? state.messages.map((message) => message.token).join(",") : "";
}

function take(reply) {
  state.run = reply.run;
  if (reply.shown) state.shown = reply.shown;
  if (reply.messages) {
    const known = new Map(state.messages.map((message) => [message.token, message]));
    const messages = reply.messages.map((message) => (typeof message === "string" ? known.get(message) : message));
    state.drawn = state.conversationId;
    state.title = reply.title;
    state.updatedAt = reply.updated_at;
    state.messages = messages;
    state.hidden = reply.hidden;
    state.context = reply.context;
    state.answer = null;
    emit("thread");
  } else if (reply.answer) {
    const { keys, fresh, thoughts } = reply.answer;
    held = new Map(keys.map((key) => [key, fresh[key] ?? held.get(key)]));
    state.answer = keys.map((key) => held.get(key));
    state.thoughts = thoughts;
    emit("answer");
  }
  emit("run");
}

async function follow() {
  if (following) return;
  following = true;
  try {
    let memoryAt = 0;
    while (state.run) {
      const began = performance.now();
      const id = state.conversationId;
      const still = () => id === state.conversationId && state.run !== null;
      const memory = began - memoryAt > MEMORY_MS;
      if (memory) memoryAt = began;
      const details = () => ({
        conversation_id: id,
        version: state.run.version,
        shown: state.shown,
        memory,
        known: [...held.keys()].join(","),
        have: tokens(),
      });
      const reply = await act("follow", details, still);
      // A reply that comes late is not about the conversation that is open now.
      if (reply?.memory && id === state.conversationId) emit("memory", reply.memory);
      if (reply?.lost) await pause(1000);
      else if (reply?.gone && id === state.conversationId) offerNew();
      else if (reply && !reply.error && still()) take(reply);
      await pause(Math.max(0, UPDATE_MS - (performance.now() - began)));
    }
  } finally {
    following = false;
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
