// One conversation in the memory panel: what it keeps where, when its next answer begins, and the actions on it. Its
// parts are redrawn one by one, so that a button that is being pressed or has the focus survives changes to the rest.
import { ask } from "./bridge.js";
import { emit, state } from "./bus.js";
import * as conversation from "./conversation.js";
import { el, icon, reconcile, term, textButton, tierMark } from "./dom.js";
import { clock, moment } from "./times.js";

const opened = new Map(); // conversation -> whether the person opened or closed its card
const pending = new Map(); // conversation -> the action in progress

// A row from the server with what only the page knows about it.
export function known(row) {
  const here = row.id === state.conversationId;
  const used = moment(row.used_at); // changes with the time, even if the row does not
  return { key: row.id, ...row, here, used, open: opened.get(row.id) ?? here, pending: pending.get(row.id) ?? "" };
}

export function card(row, old, redraw) {
  const node = old ?? el("div", { class: "kw-card", role: "listitem", "data-testid": "memory-row", "data-id": row.id });
  if (row.here) node.setAttribute("aria-current", "true");
  else node.removeAttribute("aria-current");
  const { id, title, tier, open } = row;
  const parts = [
    { key: "head", draw: head, id, title, tier, open, pinned: row.pinned, here: row.here },
    { key: "held", draw: held, tier, tokens: row.tokens, next: row.next, cold: row.cold },
  ];
  if (open) parts.push({ key: "places", draw: places, places: row.places, used: row.used, cold: row.cold });
  // A problem or a check in progress is visible without opening the card.
  if (row.check && (open || row.check.state !== "true")) parts.push({ key: "check", draw: checked, ...row.check });
  if (open) parts.push({ key: "actions", draw: actions, id, title, actions: row.actions, pending: row.pending });
  const focused = node.contains(document.activeElement) ? { ...document.activeElement.dataset } : null;
  reconcile(node, parts, (part) => part.draw(part, redraw));
  // A redrawn button or word keeps the focus; if it is gone, the card's toggle gets it.
  if (focused && !node.contains(document.activeElement)) {
    const same = (one) => (focused.testid ? one.dataset.testid === focused.testid : one.dataset.hint === focused.hint);
    const stops = [...node.querySelectorAll("button, [tabindex]")];
    (stops.find(same) ?? node.querySelector(".kw-card-toggle")).focus();
  }
  return node;
}

function head({ id, title, tier, pinned, open, here }, redraw) {
  const flip = () => {
    opened.set(id, !open);
    redraw();
  };
  const toggle = el(
    "button",
    {
      type: "button",
      class: "kw-button kw-bare kw-card-toggle",
      "aria-expanded": String(open),
      "aria-label": `${open ? "Less" : "More"} about the memory of ${title}`,
      title: open ? "Less" : "More",
      "data-testid": "more",
      on: { click: flip },
    },
    icon(open ? "chevronUp" : "chevronDown"),
  );
  const pin = el("span", { class: "kw-pinned", title: "Pinned: it stays in memory" }, icon("pin"));
  pin.append(el("span", { class: "kw-unseen", text: "pinned" }));
  // The open conversation's title stands above the chat.
  const name = here
    ? el("span", { class: "kw-unseen", text: title })
    : textButton(title, () => conversation.open(id), { class: "kw-card-title", dir: "auto", title });
  return el("div", { class: "kw-card-head" }, name, tierMark(tier), pinned ? pin : null, toggle);
}

const NEXT = "Expected time to the first token of a message of 32 tokens, from the tier beside it.";
const COLD = "Expected time to the first token if nothing had been kept.";
const SHOWN = "The branch that is shown: the ledger of this version of the conversation.";
const ALL =
  "All branches (versions that were edited or answered again) and what was read ahead. What they share counts once.";

function held({ tokens, next, cold, tier }) {
  const wait = tier === "cold" ? cold : next; // "" in the list of the others
  return el(
    "p",
    { class: "kw-card-held kw-figures" },
    el("span", { text: `${tokens} tokens long` }),
    wait ? term(`next answer ≈ ${wait}`, tier === "cold" ? COLD : NEXT) : null,
  );
}

function amount({ tokens, size }) {
  if (size === "0") return "nothing";
  return tokens === "0" ? `still empty, ${size}` : `${tokens} tokens, ${size}`; // it is being brought back
}

function places({ places: kept, used, cold }) {
  const line = (name, value) => el("div", {}, el("dt", {}, name), el("dd", { class: "kw-figures" }, value));
  const rows = [];
  for (const place of kept) {
    // Always the same lines: what is being read in this panel must not move with every answer.
    if (place.here) {
      rows.push(line(tierMark(place.tier), term(amount(place.here), SHOWN)));
      rows.push(line(term("everything kept", ALL), amount(place)));
    } else rows.push(line(tierMark(place.tier), amount(place)));
  }
  rows.push(line(term("if nothing was kept", COLD), `≈ ${cold}`));
  rows.push(line("last used", used));
  return el("dl", { class: "kw-places" }, ...rows);
}

const SIGNS = { true: "check", bad: "close", running: "retry", unknown: "retry" };

function checked({ state: found, text, at }) {
  return el(
    "p",
    { class: `kw-check kw-check-${found}`, role: found === "running" ? null : "status", "data-testid": "check" },
    icon(SIGNS[found]),
    el("span", { class: "kw-figures", text: at ? `${clock(at)} ${text}` : text }),
  );
}

function actions({ id, title, actions: offered, pending: under }, redraw) {
  const buttons = offered.map(({ name, label, hint, disabled }) => {
    // Not `disabled`, which would remove the focus and with it the reason.
    const refused = disabled || under !== "";
    const click = () => (refused ? disabled && emit("problem", hint) : act(id, name, redraw));
    return textButton(label, click, {
      class: "kw-small",
      "data-hint": hint,
      "aria-label": `${label}: ${title}`,
      "aria-description": hint,
      "aria-busy": under === name ? "true" : null,
      "aria-disabled": refused ? "true" : null,
      "data-testid": name,
    });
  });
  return el("div", { class: "kw-card-actions", role: "group", "aria-label": `Memory of ${title}` }, ...buttons);
}

async function act(id, name, redraw) {
  pending.set(id, name);
  redraw();
  const parks = name === "host" || name === "disk";
  const reply = await ask(parks ? "park" : name, { conversation_id: id, tier: name });
  pending.delete(id);
  redraw();
  if (reply.error) emit("problem", reply.error);
  emit("changed");
}
