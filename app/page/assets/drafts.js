// Each conversation keeps its own draft, also across a reload.
import { tabStorage } from "./storage.js";

// Another person who logs in in this tab has another one. See first.js.
const unplacedKey = `kw-draft-of-${document.getElementById("kw").dataset.person}`;
const editKey = (conversationId, messageId) => `kw-edit-${conversationId}-${messageId}`;
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

// What is written or sent before its conversation is known: `text` is in the box, `earlier` comes before it. `isNew`
// where it is for a conversation that was asked for, not for the one that the address names.
export function keepUnplaced(text, earlier, isNew) {
  if (text || earlier) tabStorage.set(unplacedKey, JSON.stringify({ text, earlier, isNew, at: location.hash }));
  else tabStorage.remove(unplacedKey);
}

export function unplaced() {
  return JSON.parse(tabStorage.get(unplacedKey) ?? "null");
}

// Whether this page was left, at this address, before the new conversation that was asked for had come.
export function isForNew() {
  const left = unplaced();
  return left?.isNew === true && left.at === location.hash;
}

// Another version of a message, as long as it is written.
export function rememberEdit(conversationId, messageId, text) {
  tabStorage.set(editKey(conversationId, messageId), text);
}

export function recallEdit(conversationId, messageId) {
  return tabStorage.get(editKey(conversationId, messageId));
}

export function forgetEdit(conversationId, messageId) {
  tabStorage.remove(editKey(conversationId, messageId));
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
