// Polls for changes that this page did not cause: other conversations' runs, memory, actions in another tab.
import { ask } from "./bridge.js";
import { emit, on, state } from "./bus.js";
import * as conversation from "./conversation.js";

const BUSY_MS = 1000;
const CALM_MS = 2500;
const HIDDEN_MS = 15000;
let timer = 0;
let search = "";
let asking = false;
let misses = 0;

export function startPulse() {
  on("thread", soon);
  on("changed", soon);
  on("searching", (text) => {
    search = text;
    soon();
  });
  document.addEventListener("visibilitychange", () => document.hidden || soon());
  beat();
}

function soon() {
  clearTimeout(timer);
  timer = setTimeout(beat, 30);
}

async function beat() {
  clearTimeout(timer);
  if (asking) {
    timer = setTimeout(beat, 100);
    return;
  }
  asking = true;
  const asked = search;
  const news = await ask("pulse", { search: asked });
  asking = false;
  noteReply(news);
  if (!news.lost) emit("trouble", news.trouble ?? "");
  let busy = false;
  if (!news.error) {
    emit("pulse", news);
    const rows = news.conversations.flatMap((group) => group.rows);
    // The open conversation's run sends its own updates.
    const elsewhere = rows.some((row) => row.is_running && row.id !== state.conversationId);
    busy = elsewhere || news.memory.rows.some((row) => row.check?.state === "running");
    const here = rows.find((row) => row.id === state.conversationId);
    // This conversation continued in another tab: show it.
    if (here && !state.run && (here.is_running || here.updated_at !== state.updatedAt)) {
      await conversation.open(state.conversationId);
    }
  }
  if (asked !== search) soon();
  else timer = setTimeout(beat, document.hidden ? HIDDEN_MS : busy ? BUSY_MS : CALM_MS);
}

// Reports a lost server, and notices without a reload when it is back.
function noteReply(news) {
  if (news.lost) {
    misses += 1;
    if (misses === 2) emit("problem", news.error);
  } else {
    if (misses >= 2) emit("problem", "");
    misses = 0;
  }
}
