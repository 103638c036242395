// The two channels to the server. `ask` returns JSON (sidebars, stop). `act` goes through a Gradio event, because only
// an event may change the chat; one at a time, so that a reply never arrives for a conversation that was left.
import { emit, mounted } from "./bus.js";

export const LOST = "The server does not answer. What you wrote is still here; try again in a moment.";
const WATCH_MS = 2000;
const PATIENCE_MS = 120000;

let port = null;
let lastSeq = 0;
let pending = null;
let queue = Promise.resolve();

export function mount(_element, _value, gradio) {
  port = gradio;
  gradio.watch("value", () => {
    const reply = gradio.props.value;
    if (reply?.seq === "settings") emit("settings");
    else if (pending && reply?.seq === pending.seq) pending.settle(reply);
  });
  mounted("bridge");
}

export async function ask(name, details = {}) {
  try {
    const reply = await port.server.ask({ ask: name, ...details });
    if (reply?.login) location.assign("/login");
    if (reply) return reply;
  } catch {
    // Reported below: to a person, a server that is gone and one that answers with nothing are the same.
  }
  return { error: LOST, lost: true };
}

// Resolves with the server's reply. `still` may cancel the action while it waits for its turn; then it resolves to null.
export function act(action, details = {}, still = () => true) {
  const turn = queue.then(() => (still() ? exchange(action, details) : null));
  queue = turn.catch(() => null);
  return turn;
}

export function trigger(event, details) {
  port.trigger(event, details);
}

function exchange(action, details) {
  const seq = ++lastSeq;
  const lost = { seq, error: LOST, lost: true };
  return new Promise((resolve) => {
    const began = performance.now();
    const settle = (reply) => {
      clearInterval(watchdog);
      pending = null;
      if (reply.login) location.assign("/login");
      resolve(reply);
    };
    // Gradio does not report a failed request, so check from time to time whether the server still answers.
    const watchdog = setInterval(async () => {
      const there = await isServerThere();
      if (pending?.seq === seq && (!there || performance.now() - began > PATIENCE_MS)) settle(lost);
    }, WATCH_MS);
    pending = { seq, settle };
    port.trigger("act", { seq, action, ...details });
  });
}

async function isServerThere() {
  try {
    const health = await (await fetch("/health", { cache: "no-store" })).json();
    if (!health.model) location.assign("/login"); // without a login /health reports less
    return true;
  } catch {
    return false;
  }
}
