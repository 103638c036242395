// The right sidebar: what memory holds and what that saves.
import { mounted, on } from "./bus.js";
import { el, iconButton, reconcile, tierMark } from "./dom.js";
import { card, known } from "./memory_card.js";
import * as page from "./page.js";
import { plot } from "./plot.js";

export function mount(element) {
  const totals = el("section", { class: "kw-totals", "aria-label": "Budget" });
  const trend = el("div", { class: "kw-trend" });
  const saved = el("p", { class: "kw-saved", "data-testid": "saved" });
  const whole = el("p", { class: "kw-process kw-figures", "data-testid": "process-memory" });
  const rows = el("div", { class: "kw-memory-rows", role: "list", "aria-label": "Memory of each conversation" });
  const log = el("ol", { class: "kw-log", "data-testid": "log" });
  const empty = el("p", {
    class: "kw-empty",
    text: "Nothing is held yet. The first answer makes a conversation warm.",
  });
  const logBox = el("section", { class: "kw-log-box", "aria-label": "Memory events" }, log);
  element.append(
    el(
      "aside",
      { class: "kw-side", "aria-label": "Memory" },
      el(
        "div",
        { class: "kw-side-head" },
        el("h2", { text: "Memory" }),
        iconButton("close", "Close memory", () => page.toggle("right"), { class: "kw-overlay-only" }),
      ),
      el("div", { class: "kw-memory-top" }, totals, trend, whole, saved),
      el("div", { class: "kw-memory-scroll" }, rows, empty),
      logBox,
    ),
  );

  let memory = null;
  const draw = () => {
    if (!memory) return;
    reconcile(
      totals,
      memory.bars.map((one) => ({ key: one.tier, ...one })),
      bar,
    );
    reconcile(trend, memory.plot ? [{ key: "plot", ...memory.plot }] : [], plot);
    reconcile(saved, [{ key: "saved", saved: memory.saved, reused: memory.reused }], savings);
    const all = memory.rows.map(known);
    const ordered = [...all.filter((row) => row.here), ...all.filter((row) => !row.here)];
    reconcile(rows, ordered, (row, old) => card(row, old, draw));
    reconcile(log, numbered(memory.events), line);
    empty.hidden = memory.rows.length > 0;
    logBox.hidden = memory.events.length === 0;
  };
  const take = (news) => {
    memory = news;
    draw();
  };
  on("pulse", (news) => {
    reconcile(whole, [{ key: "process", ...news.process }], processLine);
    take(news.memory);
  });
  on("memory", take);
  on("selected", draw);
  mounted("memory");
}

// Used and reserved are shown separately; the rest of the track is free.
function bar({ tier, budget, used, reserved, parts, note, hint }) {
  const words = parts.map((part) => `${part.size} ${part.name}`).join(", ");
  const track = el("div", { class: "kw-bar", role: "img", "aria-label": `${tier}: ${words}, of ${budget}` });
  for (const part of parts) {
    if (part.name === "free") continue;
    const piece = el("span", { class: `kw-bar-${part.name}` });
    piece.style.width = `${(part.share * 100).toFixed(2)}%`;
    track.append(piece);
  }
  const numbers = el("span", { class: "kw-figures kw-bar-numbers" }, el("strong", { text: used }), ` of ${budget}`);
  const apart = [reserved ? `${reserved} reserved` : "", note].filter(Boolean).join(" · ");
  return el(
    "div",
    { class: `kw-total kw-tier-${tier}`, "data-testid": `${tier}-total` },
    el("p", { class: "kw-bar-head" }, tierMark(tier), numbers),
    track,
    apart ? el("p", { class: "kw-bar-apart kw-figures", title: hint || null, text: apart }) : null,
  );
}

function processLine({ resident, parts, hint }) {
  return el("span", { title: hint }, `Process ${resident}`, el("span", { class: "kw-quiet", text: parts }));
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
  return events.map((event, index) => ({ key: `${events.length - index} ${event.clock} ${event.text}`, ...event }));
}

function line(event) {
  return el("li", {}, el("time", { class: "kw-figures", text: event.clock }), el("span", { text: event.text }));
}
