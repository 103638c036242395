// Polls for changes that this page did not cause: other conversations' runs, memory, actions in another tab. The server
// sends only what is different from what the page has. A page that is left alone asks less and less often; its other
// tabs tell it what they did.
import { ask } from "./bridge.js";
import { emit, on, state } from "./bus.js";
import * as conversation from "./conversation.js";

const BUSY_MS = 1000;
const CALM_MS = 2500;
const CALM_BEATS = 12; // at that pace; then each waits longer than the one before
const SLOWER = 1.6;
const LONGEST_MS = 60000;
const MEMORY = ["bars", "plot", "here", "rows", "more", "saved", "reused", "events", "process"];
let timer = 0;
let search = "";
let asking = false;
let misses = 0;
let quiet = 0; // beats since something happened
let beatAt = 0;
let wanted = 0; // rows of the memory panel's list
let have = ""; // tokens of what was received: see app/page/news
let list = { token: "", rows: [], search: "", isPart: false };
const memory = {};
let opened = null; // when the open conversation changed last, and whether it is being answered
let missed = ""; // the open conversation that was found deleted
let notices = { share: "", trouble: "" };
const tabs = channel();

function channel() {
  try {
    return new BroadcastChannel("keepwarm");
  } catch {
    return null; // refused by a browser that blocks site data
  }
}

export function startPulse() {
  on("thread", tellTabs);
  on("changed", tellTabs);
  on("memory", () => {
    have = ""; // the page shows something newer than the last pulse
  });
  on("searching", (text) => {
    search = text;
    soon();
  });
  if (tabs) tabs.onmessage = soon;
  document.addEventListener("visibilitychange", () => document.hidden || soon());
  for (const type of ["pointermove", "pointerdown", "keydown", "focus"]) {
    addEventListener(type, wake, { capture: true, passive: true });
  }
  beat();
}

// How many rows the memory panel's list of all conversations shows; 0 while it is closed.
export function showMemoryRows(count) {
  wanted = count;
  soon();
}

export const memoryRows = () => wanted;

function tellTabs() {
  tabs?.postMessage("changed");
  soon();
}

function soon() {
  quiet = 0;
  clearTimeout(timer);
  timer = setTimeout(beat, 30);
}

// A person is here: what they see is at most one calm beat old.
function wake() {
  if (quiet > CALM_BEATS && performance.now() - beatAt > CALM_MS) soon();
}

async function beat() {
  clearTimeout(timer);
  if (asking) {
    timer = setTimeout(beat, 100);
    return;
  }
  asking = true;
  beatAt = performance.now();
  const asked = search;
  const id = state.conversationId;
  const news = await ask("pulse", {
    search: asked,
    conversation_id: id,
    memory_rows: wanted,
    have,
    list: list.search === asked ? list.token : "",
    whole: list.isPart && list.search === asked,
  });
  asking = false;
  noteReply(news);
  let busy = false;
  if (news.error) {
    if (!news.lost) emit("trouble", news.trouble ?? "");
  } else {
    if (take(news, asked, id)) quiet = 0;
    busy = isBusy();
    // This conversation continued in another tab: show it. It may not be in the list, which can be searched.
    const here = opened?.id === state.conversationId ? opened : null;
    if (wasDeleted(id)) conversation.offerNew();
    else if (here && !state.run && (here.is_running || here.updated_at !== state.updatedAt)) {
      await conversation.open(state.conversationId);
    }
  }
  if (asked !== search || list.isPart) soon();
  else timer = setTimeout(beat, busy ? BUSY_MS : calm());
}

// Whether the conversation that the page shows is not there any more. True once.
function wasDeleted(id) {
  if (opened || !id || id !== state.conversationId || id !== state.drawn || id === missed) return false;
  missed = id;
  return true;
}

function calm() {
  quiet += 1;
  return Math.min(LONGEST_MS, CALM_MS * SLOWER ** Math.max(0, quiet - CALM_BEATS));
}

function isBusy() {
  // The open conversation's run sends its own updates.
  const elsewhere = list.rows.some((row) => row.is_running && row.id !== state.conversationId);
  return elsewhere || [memory.here, ...(memory.rows ?? [])].some((row) => row?.check?.state === "running");
}

// Adds what is new to what the page has, and tells the other parts. False if nothing is.
function take(news, asked, id) {
  if (news.list) {
    list = { token: news.list.token, rows: applied(news.list), search: asked, isPart: news.list.part === true };
  }
  if (Object.keys(news).length === 0 && memory.of === id) return false;
  memory.of = id; // whose row `memory.here` is
  have = news.have ?? have;
  if ("open" in news) opened = news.open;
  for (const name of MEMORY) if (name in news) memory[name] = news[name];
  for (const name of ["share", "trouble"]) if (name in news) notices = { ...notices, [name]: news[name] };
  emit("trouble", notices.trouble);
  emit("pulse", { search: list.search, isPart: list.isPart, rows: list.rows, memory, ...notices });
  return true;
}

function applied({ all, gone, put }) {
  if (all) return all;
  const away = new Set([...gone, ...put.map(([, row]) => row.id)]);
  const rows = list.rows.filter((row) => !away.has(row.id));
  for (const [index, row] of put) rows.splice(index, 0, row);
  return rows;
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
