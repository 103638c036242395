// Each conversation keeps its own draft, also across a reload.
import { tabStorage } from "./storage.js";

const key = (conversationId) => `kw-draft-${conversationId}`;

export function remember(conversationId, text) {
  if (text) tabStorage.set(key(conversationId), text);
  else tabStorage.remove(key(conversationId));
}

export function recall(conversationId) {
  return tabStorage.get(key(conversationId)) ?? "";
}

export function forget(conversationId) {
  tabStorage.remove(key(conversationId));
}
