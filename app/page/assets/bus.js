// The state that the parts of the page share, and the events by which they notify each other.

export const state = {
  conversationId: "",
  drawn: "", // whose messages the page shows: empty until they have arrived
  sending: null, // what is on its way to the server: see sending.js
  removing: "", // the conversation that is being deleted here
  title: "",
  updatedAt: 0,
  messages: [],
  hidden: 0,
  waiting: null, // what a program added and has no answer yet: a line about it, and rows of whose it is and its text
  shown: 30,
  run: null,
  context: null,
  answer: null, // the blocks of the growing answer, once the first update has arrived
  thoughts: null, // how many of these are thoughts, null if none are
};

const target = new EventTarget();

export function on(name, listen) {
  target.addEventListener(name, (event) => listen(event.detail));
}

export function emit(name, detail) {
  target.dispatchEvent(new CustomEvent(name, { detail }));
}
