// The right sidebar: what the open conversation keeps, the totals, and folded below them everything else.
import { on, state } from "./bus.js";
import { callTiers, el, iconButton, reconcile, term, textButton, tierMark, tierWord } from "./dom.js";
import { startHints } from "./hint.js";
import { card, known } from "./memory_card.js";
import * as page from "./page.js";
import { plot } from "./plot.js";
import { memoryRows, showMemoryRows } from "./pulse.js";
import { clock } from "./times.js";

const MORE_ROWS = 50; // that the list of all conversations grows by
const MINUTE_MS = 60000;

export function mount(element, facts) {
  callTiers(facts?.words ?? {});
  startHints();
  const here = el("div", { class: "kw-memory-here", role: "list", "aria-label": "Memory of this conversation" });
  const empty = el("p", {
    class: "kw-empty",
    text: "It keeps nothing yet. After the first answer, each message reads only what is new.",
    hidden: true,
  });
  const room = el("div", { class: "kw-memory-room", "aria-hidden": "true" });
  const totals = el("section", { class: "kw-totals", "aria-label": "All conversations together" });
  const trend = el("div", { class: "kw-trend" });
  const saved = el("p", { class: "kw-saved", "data-testid": "saved" });
  const whole = el("p", { class: "kw-process kw-figures", "data-testid": "process-memory" });
  const rows = el("div", { class: "kw-memory-rows", role: "list", "aria-label": "Memory of each conversation" });
  const more = textButton("Show more", () => showMemoryRows(memoryRows() + MORE_ROWS), {
    class: "kw-small",
    hidden: true,
  });
  const all = fold("Other conversations", "memory-all", rows, more);
  const log = el("ol", { class: "kw-log", "data-testid": "log" });
  const nothing = el("p", { class: "kw-empty", text: "Nothing was moved yet." });
  const events = fold("What happened", "memory-log", log, nothing);
  // Seen once its figures have come: then each part has its place at once.
  const inside = el(
    "div",
    { class: "kw-memory-scroll", hidden: true },
    el("h3", { class: "kw-memory-title", text: "This conversation" }),
    el("div", { class: "kw-memory-place" }, here, empty, room),
    el("h3", { class: "kw-memory-title", text: "All together" }),
    el("div", { class: "kw-memory-top" }, totals, trend, whole, saved),
    all,
    events,
  );
  element.replaceChildren(
    el(
      "aside",
      { class: "kw-side", "aria-label": "Memory" },
      el(
        "div",
        { class: "kw-side-head" },
        el("h2", { text: "Memory" }),
        iconButton("close", "Close memory", () => page.toggle("right"), { class: "kw-overlay-only" }),
      ),
      inside,
    ),
  );
  all.addEventListener("toggle", () => showMemoryRows(all.open ? MORE_ROWS : 0));

  let memory = null;
  const draw = () => {
    if (!memory) return;
    inside.hidden = false;
    const keyed = memory.bars.map((one) => ({ key: one.tier, ...one }));
    reconcile(totals, keyed, bar);
    reconcile(room, keyed.length ? [known(usual(memory.bars))] : [], (row) => unnamed(card(row, null, draw)));
    reconcile(trend, memory.plot ? [{ key: "plot", ...memory.plot }] : [], plot);
    reconcile(saved, [{ key: "saved", saved: memory.saved, reused: memory.reused }], savings);
    if (memory.process) reconcile(whole, [{ key: "process", ...memory.process }], processLine);
    // What a conversation that was just left keeps is hidden, and makes room only once the other's is known.
    const isLeft = memory.of !== state.conversationId;
    here.classList.toggle("kw-left", isLeft);
    if (!isLeft) {
      reconcile(here, memory.here ? [known(memory.here)] : [], (row, old) => card(row, old, draw));
      empty.hidden = memory.here !== null;
    }
    const others = memory.rows.filter((row) => row.id !== state.conversationId);
    if (all.open) reconcile(rows, others.map(known), (row, old) => card(row, old, draw));
    more.hidden = !memory.more;
    if (events.open) reconcile(log, numbered(memory.events), line);
    nothing.hidden = memory.events.length > 0;
  };
  events.addEventListener("toggle", draw);
  on("pulse", (news) => {
    memory = { ...memory, ...news.memory };
    draw();
  });
  on("memory", (news) => {
    // While an answer is written, only the open conversation and the totals are sent.
    memory = { ...memory, ...news, of: state.conversationId, rows: memory?.rows ?? [], more: memory?.more };
    draw();
  });
  on("selected", draw);
  setInterval(draw, MINUTE_MS); // "12 min ago" grows older by itself
}

// A conversation's card as it usually is. It is never seen: where the true one will stand, it keeps the room, so that
// nothing below moves with the first answer.
function usual(bars) {
  const kept = { tokens: "1,000", size: "100.0 MiB" };
  return {
    id: state.conversationId, // as wide open as that one's
    title: "",
    tier: "device",
    tokens: kept.tokens,
    next: "0.10 s",
    cold: "10 s",
    used_at: 0,
    open: true,
    places: bars.map(({ tier }) => ({ tier, ...kept, here: kept })),
    actions: ["Pin", "To disk", "Check", "Forget"].map((label) => ({ name: "", label, hint: "" })),
  };
}

function unnamed(node) {
  for (const one of [node, ...node.querySelectorAll("[data-testid]")]) delete one.dataset.testid;
  return node;
}

function fold(title, testId, ...inside) {
  return el(
    "details",
    { class: "kw-fold", "data-testid": testId },
    el("summary", { text: title }),
    el("div", { class: "kw-fold-inside" }, ...inside),
  );
}

// Used and reserved are shown separately; the rest of the track is free.
function bar({ tier, budget, used, reserved, reserved_hint: reservedHint, parts, note, hint }) {
  const said = parts.map((part) => `${part.size} ${part.name}`).join(", ");
  const track = el("div", { class: "kw-bar", role: "img", "aria-label": `${tierWord(tier)}: ${said}, of ${budget}` });
  for (const part of parts) {
    if (part.name === "free") continue;
    const piece = el("span", { class: `kw-bar-${part.name}` });
    piece.style.width = `${(part.share * 100).toFixed(2)}%`;
    track.append(piece);
  }
  const numbers = el("span", { class: "kw-figures kw-bar-numbers" }, el("strong", { text: used }), ` of ${budget}`);
  // Only answers set something aside, in the memory where they are computed: there the line has its room always.
  const apart = el("p", { class: "kw-bar-apart kw-figures", hidden: !note && tier !== "device" });
  if (note) apart.append(term(note, hint));
  if (reserved) apart.append(term(`${reserved} set aside for answers`, reservedHint));
  return el(
    "div",
    { class: `kw-total kw-tier-${tier}`, "data-testid": `${tier}-total` },
    el("p", { class: "kw-bar-head" }, tierMark(tier), numbers),
    track,
    apart,
  );
}

function processLine({ resident, parts, hint }) {
  return el("span", {}, term("Whole program", hint), ` ${resident}`, el("span", { class: "kw-quiet", text: parts }));
}

function savings({ saved, reused }) {
  if (!saved) return el("span", { class: "kw-quiet", text: "Saved so far: nothing yet" });
  return el(
    "span",
    {},
    "Saved so far ",
    el("strong", { class: "kw-figures", text: saved }),
    el("span", { class: "kw-quiet kw-figures", text: `${reused} tokens not read again` }),
  );
}

function numbered(events) {
  return events.map((event, index) => ({ key: `${events.length - index} ${event.at} ${event.text}`, ...event }));
}

function line(event) {
  return el("li", {}, el("time", { class: "kw-figures", text: clock(event.at) }), el("span", { text: event.text }));
}
