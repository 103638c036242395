// Each conversation keeps its own draft, also across a reload.
import { tabStorage } from "./storage.js";

const flightKey = (conversationId) => `kw-sending-${conversationId}`;
const key = (conversationId) => `kw-draft-${conversationId}`;

// `before` is a draft from before this one, which waits until this one is sent.
export function remember(conversationId, text, before = "") {
  const all = [before, text].filter(Boolean).join("\n");
  if (all) tabStorage.set(key(conversationId), all);
  else tabStorage.remove(key(conversationId));
}

export function recall(conversationId) {
  return tabStorage.get(key(conversationId)) ?? "";
}

// What was sent is no draft any more; one from before it stays.
export function sent(conversationId, text) {
  const kept = recall(conversationId);
  if (kept === text) tabStorage.remove(key(conversationId));
  else if (kept.endsWith(`\n${text}`)) remember(conversationId, kept.slice(0, -text.length - 1));
}

export function forget(conversationId) {
  tabStorage.remove(key(conversationId));
  land(conversationId);
}

// What is on its way to the server, until it is known to have come; `after` is the last message before it. `isBack`
// where the person has it again because that is not known.
export function launch(conversationId, text, after, isBack = false) {
  tabStorage.set(flightKey(conversationId), JSON.stringify({ text, after, isBack }));
}

export function flight(conversationId) {
  return JSON.parse(tabStorage.get(flightKey(conversationId)) ?? "null");
}

export function land(conversationId) {
  tabStorage.remove(flightKey(conversationId));
}
