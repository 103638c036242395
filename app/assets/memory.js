// The right sidebar: what the memory holds and what that is worth.
import { ask } from "./bridge.js";
import { emit, mounted, on, state } from "./bus.js";
import * as conversation from "./conversation.js";
import { el, iconButton, reconcile, textButton, tierMark } from "./dom.js";
import * as page from "./page.js";

export function mount(element) {
  const totals = el("section", { class: "kw-totals", "aria-label": "Budget" });
  const saved = el("p", { class: "kw-saved", "data-testid": "saved" });
  const rows = el("div", { class: "kw-memory-rows", role: "list", "aria-label": "Memory of each conversation" });
  const log = el("ol", { class: "kw-log", "data-testid": "log" });
  const empty = el("p", { class: "kw-empty", text: "Nothing is held yet. The first answer warms a conversation up." });
  const logBox = el("section", { class: "kw-log-box", "aria-label": "What happened" }, log);
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
      totals,
      saved,
      el("div", { class: "kw-memory-scroll" }, rows, empty),
      logBox,
    ),
  );

  let memory = null;
  const draw = () => {
    if (!memory) return;
    const bars = [{ key: "device", draw: bar, parts: memory.parts, budget: memory.budget }];
    if (memory.disk) bars.push({ key: "disk", draw: diskBar, ...memory.disk });
    reconcile(totals, bars, (one) => one.draw(one));
    reconcile(saved, [{ key: "saved", saved: memory.saved, reused: memory.reused }], savings);
    reconcile(rows, memory.rows.map((row) => ({ key: row.id, ...row, here: row.id === state.conversationId })), card);
    reconcile(log, numbered(memory.events), line);
    empty.hidden = memory.rows.length > 0;
    logBox.hidden = memory.events.length === 0;
  };
  on("pulse", (news) => {
    memory = news.memory;
    draw();
  });
  on("selected", draw);
  mounted("memory");
}

function bar({ parts, budget }) {
  const words = parts.map((part) => `${part.size} ${part.name}`).join(", ");
  const track = el("div", { class: "kw-bar", role: "img", "aria-label": `Device memory: ${words} of ${budget}` });
  const legend = el("dl", { class: "kw-legend" });
  for (const part of parts) {
    const piece = el("span", { class: `kw-bar-${part.name}` });
    piece.style.width = `${(part.share * 100).toFixed(2)}%`;
    if (part.name !== "free") track.append(piece);
    legend.append(
      el("div", {}, el("dt", {}, el("i", { class: `kw-bar-${part.name}` }), part.name), el("dd", { class: "kw-figures", text: part.size })),
    );
  }
  const heading = el("p", { class: "kw-bar-head" }, tierMark("device"), el("span", { class: "kw-figures", text: `of ${budget}` }));
  return el("div", {}, heading, track, legend);
}

function diskBar({ used, budget, share }) {
  const track = el("div", { class: "kw-bar kw-bar-thin", role: "img", "aria-label": `Disk: ${used} of ${budget} used` });
  const piece = el("span", { class: "kw-bar-disk" });
  piece.style.width = `${(share * 100).toFixed(2)}%`;
  track.append(piece);
  const heading = el("p", { class: "kw-bar-head" }, tierMark("disk"), el("span", { class: "kw-figures", text: `${used} of ${budget}` }));
  return el("div", { "data-testid": "disk-total" }, heading, track);
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

function card(row) {
  const title = textButton(row.title, () => conversation.open(row.id), { class: "kw-card-title", title: row.title });
  const weight = el("div", { class: `kw-weight kw-weight-${row.tier}`, "aria-hidden": "true" });
  weight.style.setProperty("--share", row.share.toFixed(3));
  const held = [row.tokens ? `${row.tokens} tokens` : "", row.size].filter(Boolean).join(" · ");
  return el(
    "div",
    { class: "kw-card", role: "listitem", "aria-current": row.here ? "true" : null, "data-testid": "memory-row", "data-id": row.id },
    el("div", { class: "kw-card-head" }, title, tierMark(row.tier)),
    weight,
    el("p", { class: "kw-card-held kw-figures", text: held }),
    costs(row),
    row.can_drop
      ? textButton("Drop", () => drop(row), {
          class: "kw-small kw-drop",
          "aria-label": `Drop the cache of ${row.title}`,
          title: "Frees the memory and the saved copy. The text stays; the next turn reads it again.",
          "data-testid": "drop",
        })
      : null,
  );
}

function costs(row) {
  const cost = (name, text) => el("div", {}, el("dt", { text: name }), el("dd", { class: "kw-figures", text }));
  if (row.tier === "cold") return el("dl", { class: "kw-costs" }, cost("next turn", `≈ ${row.cold}, read from the start`));
  return el("dl", { class: "kw-costs" }, cost("next turn", `≈ ${row.next}`), cost("without the cache", `≈ ${row.cold}`));
}

async function drop(row) {
  const reply = await ask("drop", { conversation_id: row.id });
  if (reply.error) emit("problem", reply.error);
  emit("changed");
}

function numbered(events) {
  return events.map((event, index) => ({ key: `${events.length - index} ${event.clock} ${event.text}`, ...event }));
}

function line(event) {
  return el("li", {}, el("time", { class: "kw-figures", text: event.clock }), el("span", { text: event.text }));
}
