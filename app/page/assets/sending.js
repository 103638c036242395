// The message that is on its way to the server: it stands on the page at once. One at a time.
import { emit, state } from "./bus.js";
import * as drafts from "./drafts.js";

export const STILL_SENDING = "Another message is still being sent.";
const NOT_YET = Number.MAX_SAFE_INTEGER; // later than every message: it was not sent yet

// `editing` is the id of the message of which this is another version, 0 for a new message. The conversation is "" until
// it is known.
export function begin(text, conversationId, editing = 0) {
  state.sending = { text, conversationId, editing, isStopped: false };
  if (conversationId && !unsettled(conversationId, text)) launch();
  emit("sending");
}

// The same text as it was launched before, if it is not known whether the server has it.
export function unsettled(conversationId, text) {
  const flight = drafts.flight(conversationId);
  return flight?.isBack && flight.text === text ? flight : null;
}

// Its conversation is known. From now on a reload loses nothing.
export function place(conversationId) {
  if (conversationId === state.sending.conversationId) return;
  state.sending.conversationId = conversationId;
  launch();
  emit("sending");
}

// Notes what is on its way, with the newest message before it.
export function launch() {
  const { conversationId, text } = state.sending;
  const last = state.messages.at(-1)?.id ?? 0;
  drafts.launch(conversationId, text, state.drawn === conversationId ? last : NOT_YET);
}

export function end() {
  state.sending = null;
  emit("sending");
}

// What of it belongs on the page that is shown, or null.
export function sendingHere() {
  const { sending, conversationId } = state;
  return sending && ["", conversationId].includes(sending.conversationId) ? sending : null;
}

// Whether the messages that are shown are those of another conversation.
export function isApart() {
  const here = sendingHere();
  return here !== null && here.conversationId !== state.drawn;
}

// Whether what was launched is among the messages that are shown.
export function hasArrived({ text, after }) {
  return state.messages.some((one) => one.role === "user" && one.id > after && one.text === text);
}

// After a reload, or a reply that was lost, it is not known whether the server has what was sent: its messages say so.
export function settle(conversationId) {
  const flight = drafts.flight(conversationId);
  if (!flight || state.sending?.conversationId === conversationId) return;
  if (hasArrived(flight)) {
    drafts.land(conversationId);
    emit("arrived", flight.text);
  } else if (!flight.isBack) {
    drafts.launch(conversationId, flight.text, flight.after, true);
    emit("draft", flight.text);
  }
}
