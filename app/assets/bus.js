// What the parts of the page know together, and how they tell each other.

export const state = {
  conversationId: "",
  title: "",
  updatedAt: 0,
  messages: [],
  hidden: 0,
  shown: 30,
  run: null,
  context: null,
};

const target = new EventTarget();

export function on(name, listen) {
  target.addEventListener(name, (event) => listen(event.detail));
}

export function emit(name, detail) {
  target.dispatchEvent(new CustomEvent(name, { detail }));
}

// Parts are mounted in any order; whoever comes late hears what was said before.
export function whenReady(start) {
  if (ready) start();
  else waiting.push(start);
}

let ready = false;
const waiting = [];

export function nowReady() {
  ready = true;
  for (const start of waiting.splice(0)) start();
}
