// What is happening below an answer that is being made: its place in the queue, how much was read, how long that takes.
import { state } from "./bus.js";
import { el } from "./dom.js";

const LEAST_TOKENS = 500; // what is read sooner needs no forecast
const LEAST_S = 0.4; // measured for this long, the speed is worth a forecast
let reading = null; // {message, fed, at}: when this page first saw the model read, and how far it was

export function progressFoot() {
  return el(
    "div",
    { class: "kw-foot kw-running" },
    el("div", { class: "kw-progress", role: "status" }, el("span", { class: "kw-progress-label" })),
    el("div", { class: "kw-progress-line" }, el("div", { class: "kw-progress-fill" })),
  );
}

export function drawProgress() {
  let foot = document.querySelector(".kw-running");
  if (!foot || !state.run) return;
  const { label, fraction, phase } = state.run;
  // What was said about reading does not move down with the text: it ends, and the mark of writing begins.
  if (phase === "answering" && foot.dataset.phase !== phase) {
    const fresh = progressFoot();
    fresh.dataset.signature = foot.dataset.signature;
    foot.replaceWith(fresh);
    foot = fresh;
  }
  foot.dataset.phase = phase;
  const words = foot.querySelector(".kw-progress-label");
  const said = [label, timeLeft(state.run)].filter(Boolean).join(", ");
  if (words.textContent !== said) words.textContent = said;
  foot.querySelector(".kw-progress-line").hidden = fraction === null;
  foot.querySelector(".kw-progress-fill").style.transform = `scaleX(${fraction ?? 0})`;
}

function timeLeft({ phase, fed_tokens: fed, total_tokens: total }) {
  const message = state.messages.at(-1)?.id;
  if (phase !== "reading" || total < LEAST_TOKENS || fed === 0) {
    reading = null;
    return "";
  }
  const now = performance.now();
  if (reading?.message !== message) reading = { message, fed, at: now };
  const seconds = (now - reading.at) / 1000;
  if (seconds < LEAST_S || fed <= reading.fed) return "";
  const left = Math.ceil(((total - fed) * seconds) / (fed - reading.fed));
  if (left < 1) return "";
  return left < 90 ? `about ${left} s left` : `about ${Math.round(left / 60)} min left`;
}
