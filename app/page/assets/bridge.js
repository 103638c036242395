// The channel to the server: every question is one request, answered with JSON.
const ADDRESS = "ask"; // relative: the page may be below a proxy's path
const LOST = "The server does not answer. What you wrote is still here; try again in a moment.";
const REFUSED =
  "The server did not take this request. Try again; if that does not help, reload the page: what you wrote is kept.";
const LOGGED_OUT = "You are logged out. What you wrote is still here after the next log-in.";
const WATCH_MS = 2000;
const PATIENCE_MS = 120000;
const HEALTH_MS = 5000;
const LEAVING_MS = 3000;
const MESSAGES = ["send", "edit"]; // they are sent to the end even if the tab is closed right away
const LONGEST_OUTLIVING = 15000; // characters: browsers take 64 KiB of such requests

// Times are written as the reader's clock shows them.
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone ?? "";
let queue = Promise.resolve();
let leftAt = -Infinity;
addEventListener("beforeunload", () => {
  leftAt = performance.now();
});

// Resolves with the reply, or with a sentence as its `error`. It is `lost` where none came.
export async function ask(name, details = {}) {
  const given = new AbortController();
  const stopWatching = watch(given);
  try {
    const body = JSON.stringify({ ask: name, zone, ...details });
    const response = await fetch(ADDRESS, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body,
      keepalive: MESSAGES.includes(details.action) && body.length < LONGEST_OUTLIVING,
      signal: given.signal,
    });
    if (response.status === 401) return logIn();
    // A proxy's own page, or an answer that broke off, is no answer of the server, whatever its status.
    const reply = await response.json().catch(() => null);
    if (reply?.login) return logIn();
    if (response.ok && reply) return reply;
    const sentence = [reply?.error, reply?.detail].find((said) => typeof said === "string");
    const refused = reply !== null && response.status < 500;
    return { error: sentence ?? (refused ? REFUSED : LOST), lost: true };
  } catch {
    // A page that is left loses its requests. It does not become one that was not answered: what it would do then, with
    // what is written, is not what is found after a reload.
    if (performance.now() - leftAt < LEAVING_MS) await new Promise((resolve) => setTimeout(resolve, LEAVING_MS));
    return { error: LOST, lost: true };
  } finally {
    stopWatching();
  }
}

// Changes the chat, or asks what it is now; one at a time, so that a reply never arrives for a conversation that was
// left. `details` gives the action's fields when its turn has come. `still` may cancel the action while it waits for its
// turn; then it resolves to null.
export function act(action, details, still) {
  const turn = queue.then(() => (still() ? ask("act", { action, ...details() }) : null));
  queue = turn.catch(() => null);
  return turn;
}

// A lost network may leave a request without an end: from time to time it is checked that the server is still there.
function watch(given) {
  const began = performance.now();
  const timer = setInterval(async () => {
    if (performance.now() - began > PATIENCE_MS || !(await isThere())) given.abort();
  }, WATCH_MS);
  return () => clearInterval(timer);
}

async function isThere() {
  try {
    await fetch("health", { cache: "no-store", signal: AbortSignal.timeout(HEALTH_MS) });
    return true;
  } catch {
    return false;
  }
}

// The log-in says what happened, and leads back to the conversation that the address names.
function logIn() {
  location.replace(`login?ended${location.hash}`);
  return { error: LOGGED_OUT, login: true };
}
