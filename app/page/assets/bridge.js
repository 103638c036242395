// The two channels to the server. `ask` returns JSON (sidebars, settings, stop). `act` goes through a Gradio event,
// because only an event may change the chat; one at a time, so that a reply never arrives for a conversation that was
// left.
import { emit } from "./bus.js";

const LOST = "The server does not answer. What you wrote is still here; try again in a moment.";
const REFUSED =
  "The server did not take this request. Try again; if that does not help, reload the page: what you wrote is kept.";
const LOGGED_OUT = "You are logged out. What you wrote is still here after the next log-in.";
const WATCH_MS = 2000;
const PATIENCE_MS = 120000;
const HEALTH_MS = 5000;
const START_MS = 20000;
const INCOMPLETE = "A part of this page has not come yet. If nothing happens soon, reload the page.";

// Times are written as the reader's clock shows them.
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone ?? "";
let port = null; // what Gradio gives to its component
let arrived = null;
const connected = new Promise((resolve) => {
  arrived = resolve;
});
let lastSeq = 0;
let pending = null;
let sendsNoEvents = false; // after an event that did not reach the server, Gradio sends no more of them
let queue = Promise.resolve();

// Gradio has started. The page was there before that, and could be written in.
export function connect(gradio) {
  port = gradio;
  arrived();
  gradio.watch("value", () => {
    const reply = gradio.props.value;
    if (pending && reply?.seq === pending.seq) pending.settle(reply);
  });
}

export function watchStart() {
  const late = setTimeout(() => emit("problem", INCOMPLETE), START_MS);
  connected.then(() => clearTimeout(late));
}

export async function ask(name, details = {}) {
  await connected;
  const reply = await port.server.ask({ ask: name, zone, ...details }).catch(() => null);
  if (reply) return reply.login ? logIn() : reply;
  // Gradio gives nothing where the server is gone, refuses a visitor who is logged out, or does not know this page.
  const found = await look();
  if (found === "logged out") return logIn();
  return { error: found === "there" ? REFUSED : LOST, lost: true };
}

// Resolves with the server's reply. `details` gives the action's fields when its turn has come. `still` may cancel the
// action while it waits for its turn; then it resolves to null.
export function act(action, details, still) {
  const turn = queue.then(() => connected).then(() => (still() ? exchange(action, details()) : null));
  queue = turn.catch(() => null);
  return turn;
}

function exchange(action, details) {
  const seq = ++lastSeq;
  if (sendsNoEvents) return ask("act", { seq, action, ...details });
  return new Promise((resolve) => {
    const began = performance.now();
    const settle = (reply) => {
      clearInterval(watchdog);
      pending = null;
      resolve(reply.login ? logIn() : reply);
    };
    // Gradio does not report a failed request, so check from time to time whether the server still answers.
    const watchdog = setInterval(async () => {
      const found = await look();
      if (pending?.seq !== seq) return;
      sendsNoEvents = sendsNoEvents || found === "gone";
      if (found === "logged out") settle({ seq, login: true });
      else if (found === "gone" || performance.now() - began > PATIENCE_MS) settle({ seq, error: LOST, lost: true });
    }, WATCH_MS);
    pending = { seq, settle };
    port.trigger("act", { seq, action, zone, ...details });
  });
}

// "there", "gone", or "logged out": then /health says less.
async function look() {
  try {
    const health = await fetch("health", { cache: "no-store", signal: AbortSignal.timeout(HEALTH_MS) });
    return (await health.json()).model ? "there" : "logged out";
  } catch {
    return "gone";
  }
}

// The log-in leads back to the conversation that the address names.
function logIn() {
  location.replace(`login${location.hash}`);
  return { error: LOGGED_OUT, login: true };
}
