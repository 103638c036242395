// The open conversation: actions on it, and following its running answer.
import { act, ask } from "./bridge.js";
import { emit, state } from "./bus.js";

const UPDATE_MS = 110; // nine updates a second
const SHOWN = 30;
const MEMORY_MS = 1000; // how often the memory panel is updated during a run
let following = false;
let held = new Map(); // the blocks of the growing answer by key

export async function open(conversationId) {
  const changed = conversationId !== state.conversationId;
  if (changed) {
    state.conversationId = conversationId;
    state.shown = SHOWN;
    state.run = null;
    emit("leaving");
  }
  emit("selected", conversationId);
  const reply = await perform("open", {}, conversationId);
  if (reply?.gone && !reply.lost) {
    await openNew();
    emit("problem", "That conversation no longer exists.");
  } else if (changed) {
    emit("opened");
  }
}

export async function openNew() {
  const reply = await ask("new");
  if (reply.error) emit("problem", reply.error);
  else await open(reply.conversation_id);
}

export async function showEarlier() {
  state.shown += SHOWN;
  await perform("open");
}

export async function send(text) {
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
  const reply = await act(action, { conversation_id: conversationId, shown: state.shown, ...details }, current);
  if (!reply || !current()) return null;
  if (reply.error) {
    if (!reply.gone) emit("problem", reply.error);
    return reply;
  }
  if (action !== "open") emit("problem", "");
  take(reply);
  follow();
  return reply;
}

function take(reply) {
  state.run = reply.run;
  if (reply.messages) {
    state.title = reply.title;
    state.updatedAt = reply.updated_at;
    state.messages = reply.messages;
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
      const details = {
        conversation_id: id,
        version: state.run.version,
        shown: state.shown,
        memory,
        known: [...held.keys()].join(","),
      };
      const reply = await act("follow", details, still);
      if (reply?.memory) emit("memory", reply.memory);
      if (reply?.lost) await pause(1000);
      else if (reply?.gone) break;
      else if (reply && !reply.error && still()) take(reply);
      await pause(Math.max(0, UPDATE_MS - (performance.now() - began)));
    }
  } finally {
    following = false;
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
