// Each conversation keeps its own draft, also across a reload.
import { tabStorage } from "./storage.js";

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
  if (kept === text) forget(conversationId);
  else if (kept.endsWith(`\n${text}`)) remember(conversationId, kept.slice(0, -text.length - 1));
}

export function forget(conversationId) {
  tabStorage.remove(key(conversationId));
}
