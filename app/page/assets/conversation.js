// The open conversation: actions on it, and following its running answer.
import * as address from "./address.js";
import { act, ask } from "./bridge.js";
import { emit, state } from "./bus.js";
import * as drafts from "./drafts.js";
import * as sending from "./sending.js";
import * as tabs from "./tabs.js";

const UPDATE_MS = 110; // nine updates a second
const SHOWN = 30;
const MEMORY_MS = 1000; // how often the memory panel is updated during a run
const UNKNOWN = "That conversation no longer exists, or it belongs to someone else. This is a new one.";
const NOT_SENT = "A message to another conversation was not sent. It is in that conversation's message box.";
const DELETED = "This conversation was deleted in another tab or on another device. What you wrote is still here.";
let following = false;
let held = new Map(); // the blocks of the growing answer by key

let begun = Promise.resolve();
let isBeginning = true; // the conversation that is written for is not known yet
let isTurning = false;

// Opens the conversation that the address names, or an empty one.
export function begin(conversationId) {
  begun = conversationId ? open(conversationId, "replace") : openNew(address.named() ? "push" : "replace");
  return begun;
}

// Opens a conversation. `how` it gets into the browser's history: see address.js. With `find`, a searched text, it is
// shown where that text stands.
export async function open(conversationId, how = "push", find = "") {
  const changed = conversationId !== state.conversationId;
  // A draft at the start may be another person's, who wrote it in this tab and logged out; what is written now is not.
  const isOwn = how === "push" || !drafts.recall(conversationId);
  if (changed) {
    state.conversationId = conversationId;
    isBeginning = false;
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
    const draft = isOwn ? drafts.recall(conversationId) : "";
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
  isBeginning = true;
  emit("beginning");
  const opened = askNew(how).finally(() => {
    if (begun === opened) {
      begun = Promise.resolve();
      isBeginning = false;
    }
    emit("begun");
  });
  begun = opened;
  return opened;
}

async function askNew(how) {
  // The open one is not empty if a message is on its way to it.
  const taken = [...tabs.openElsewhere(), state.sending?.conversationId].filter(Boolean);
  const reply = await ask("new", { taken: taken.join(",") });
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

// Sends a message, which stands on the page meanwhile. Resolves with false if its text belongs back into the box: with
// true if the server has it, or if it is a draft now of a conversation that is not open any more.
export async function send(text) {
  sending.begin(text, isBeginning ? "" : state.conversationId);
  try {
    // Without the new conversation that was asked for, it is not sent: it is not for the old one.
    if ((await begun) === false && state.conversationId) return false;
    // The server could not give one before.
    if (!state.conversationId && !(await openNew("replace"))) return false;
    return await deliver("send", { text });
  } finally {
    if (state.sending) sending.end();
  }
}

// Another version of a message, which stands in its place meanwhile. Resolves like `send`.
export async function edit(messageId, text) {
  sending.begin(text, state.conversationId, messageId);
  try {
    return await deliver("edit", { message_id: messageId, text });
  } finally {
    if (state.sending) sending.end();
  }
}

async function deliver(action, details) {
  const { text } = details;
  const id = state.sending.conversationId || state.conversationId;
  const before = sending.unsettled(id, text);
  if (before) {
    const reply = await perform("open", {}, id);
    if (id !== state.conversationId) return keepAsDraft(id, text);
    if (!reply || reply.error) return false;
    if (sending.hasArrived(before)) {
      drafts.land(id);
      return true;
    }
  }
  sending.place(id);
  // Also if another conversation is open by then.
  const reply = await act(action, asked(id, details), () => {
    if (id === state.drawn) sending.launch();
    return true;
  });
  const { isStopped } = state.sending;
  state.sending = null; // before its message is drawn
  if (!reply.error) drafts.sent(id, text);
  if (!reply.lost) drafts.land(id);
  else drafts.launch(id, text, drafts.flight(id)?.after ?? 0, true);
  const isOpen = id === state.conversationId;
  if (isOpen) receive(action, reply);
  emit("sending");
  if (reply.error) return isOpen ? false : keepAsDraft(id, text);
  if (isOpen) emit("sent");
  if (isStopped) await ask("stop", { conversation_id: id });
  return true;
}

function keepAsDraft(id, text) {
  drafts.remember(id, drafts.recall(id), text);
  emit("problem", NOT_SENT);
  return true;
}

export const regenerate = () => turn("regenerate");
export const continueAnswer = () => turn("continue");
export const switchSibling = (messageId, step) => perform("switch", { message_id: messageId, step });

export async function stop() {
  const here = sending.sendingHere();
  if (!here && !state.run) return;
  emit("stopping");
  if (here) {
    here.isStopped = true; // once the server has it
    return;
  }
  const reply = await ask("stop", { conversation_id: state.conversationId });
  if (reply.error) emit("problem", reply.error);
}

// A second press while the first is on its way asks for nothing more.
async function turn(action) {
  if (state.sending) emit("problem", sending.STILL_SENDING);
  if (isTurning || state.sending) return;
  isTurning = true;
  const reply = await perform(action);
  isTurning = false;
  if (reply && !reply.error) emit("sent");
}

async function perform(action, details = {}, conversationId = state.conversationId) {
  const current = () => conversationId === state.conversationId;
  const reply = await act(action, asked(conversationId, details), current);
  if (!reply || !current()) return null;
  receive(action, reply);
  return reply;
}

// When its turn comes: the reply before may have shown more.
function asked(conversationId, details) {
  return () => ({ conversation_id: conversationId, shown: state.shown, have: tokens(), ...details });
}

function receive(action, reply) {
  if (reply.error) {
    if (!reply.gone) emit("problem", reply.error);
    else if (action !== "open") offerNew();
    return;
  }
  if (action !== "open") emit("problem", "");
  take(reply);
  follow();
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
    state.waiting = reply.waiting;
    state.context = reply.context;
    state.answer = null;
    emit("thread");
    sending.settle(state.conversationId);
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
