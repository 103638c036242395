// Answers that ended while no one looked: in another conversation, or in this one while its tab was hidden.
import { emit, on, state } from "./bus.js";

const unread = new Set(); // ids of conversations
const running = new Set();

export function isUnread(conversationId) {
  return unread.has(conversationId);
}

export function isAnythingUnread() {
  return unread.size > 0;
}

export function watchAnswers() {
  on("run", () => note(state.conversationId, state.run !== null));
  on("pulse", (news) => {
    const { rows } = news;
    const isWhole = news.search === "" && !news.isPart; // all conversations are listed
    for (const id of unread) if (isWhole && !rows.some((row) => row.id === id) && unread.delete(id)) emit("unread");
    for (const row of rows) if (row.id !== state.conversationId) note(row.id, row.is_running);
  });
  on("opened", seen);
  document.addEventListener("visibilitychange", () => document.hidden || seen());
}

function note(conversationId, isRunning) {
  if (isRunning) {
    running.add(conversationId);
  } else if (running.delete(conversationId)) {
    if (conversationId === state.conversationId && !document.hidden) return;
    unread.add(conversationId);
    emit("unread");
  }
}

// The open conversation is on the screen.
function seen() {
  if (!document.hidden && unread.delete(state.conversationId)) emit("unread");
}
