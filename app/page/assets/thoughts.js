// A reasoning model's thoughts, folded above its answer. They open on a click, also while they grow.
import { drawAnswer } from "./answer.js";
import { el } from "./dom.js";

// Makes `body` show an answer: the first blocks are its thoughts if there are `thoughts` ({blocks, is_open, time}).
export function drawWithThoughts(body, blocks, thoughts) {
  const count = thoughts?.blocks ?? 0;
  if (thoughts) {
    body.kwThoughts ??= fold(body);
    drawAnswer(body.kwThoughts.inside, blocks.slice(0, count));
    label(body.kwThoughts, thoughts);
  } else if (body.kwThoughts) {
    body.kwThoughts.box.remove();
    body.kwThoughts = null;
  }
  drawAnswer(body, blocks.slice(count));
}

function fold(body) {
  const words = el("span");
  const inside = el("div", { class: "kw-thoughts-text" });
  const box = el("details", { class: "kw-thoughts" }, el("summary", {}, words), inside);
  body.prepend(box);
  return { box, words, inside, began: performance.now(), took: null };
}

function label(fold, { is_open: open, time }) {
  const seconds = Math.round((performance.now() - fold.began) / 1000);
  fold.box.classList.toggle("kw-thinking", open && !time);
  let words = "Thoughts";
  if (time) {
    words = open ? `Thought for about ${time}, without an end` : `Thought for about ${time}`;
  } else if (open && fold.box.closest("[aria-busy=true]")) {
    words = seconds > 0 ? `Thinking, ${seconds} s` : "Thinking";
  } else if (!open && fold.box.closest("[aria-busy=true]")) {
    fold.took ??= seconds;
    words = `Thought for about ${fold.took} s`;
  }
  if (fold.words.textContent !== words) fold.words.textContent = words;
}
