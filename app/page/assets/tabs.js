// Which conversations the other tabs of this browser have open: a new tab does not share their empty one.
import { browserStorage } from "./storage.js";

const PREFIX = "kw-tab-";
const REFRESH_MS = 30000;
const GONE_MS = 150000; // a hidden tab may be held back for a minute or two; one that crashed says nothing any more
const mine = `${PREFIX}${Math.random().toString(36).slice(2)}`;
let shown = "";

// This tab has this conversation open.
export function note(conversationId) {
  if (!shown) {
    setInterval(write, REFRESH_MS);
    addEventListener("pagehide", () => browserStorage.remove(mine));
    addEventListener("pageshow", write);
  }
  shown = conversationId;
  write();
}

export function openElsewhere() {
  const found = [];
  for (const key of browserStorage.keys()) {
    if (!key.startsWith(PREFIX) || key === mine) continue;
    const [at, conversationId] = (browserStorage.get(key) ?? "").split(" ");
    if (Math.abs(Date.now() - Number(at)) < GONE_MS) found.push(conversationId);
    else browserStorage.remove(key);
  }
  return found;
}

function write() {
  browserStorage.set(mine, `${Date.now()} ${shown}`);
}
