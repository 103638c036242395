// Builds nodes. Text is only ever set with textContent, so nothing that a person or model wrote can become markup.

export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name === "on") for (const [type, listen] of Object.entries(value)) node.addEventListener(type, listen);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const ICONS = {
  plus: ["M8 3v10", "M3 8h10"],
  search: ["M7 11.5a4.5 4.5 0 1 0 0-9 4.5 4.5 0 0 0 0 9z", "M10.4 10.4 14 14"],
  trash: ["M2.5 4.5h11", "M6 4.5V2.8h4v1.7", "M4 4.5l.6 9h6.8l.6-9", "M6.7 7.2v3.8", "M9.3 7.2v3.8"],
  pencil: ["M3 13l.6-2.8 7-7 2.2 2.2-7 7z"],
  copy: ["M5.5 5.5h8v8h-8z", "M10.5 5.5v-3h-8v8h3"],
  check: ["M3 8.5l3.3 3.3L13 5"],
  retry: ["M13 8a5 5 0 1 1-1.6-3.7", "M13.3 2.2v3h-3"],
  forward: ["M4.5 3.5l6 4.5-6 4.5z", "M12.5 3.5v9"],
  up: ["M8 13V3.5", "M3.8 7.5L8 3.3l4.2 4.2"],
  down: ["M8 3v9.5", "M3.8 8.5L8 12.7l4.2-4.2"],
  left: ["M10 3.5L5.5 8l4.5 4.5"],
  right: ["M6 3.5L10.5 8 6 12.5"],
  close: ["M4 4l8 8", "M12 4l-8 8"],
  stop: ["M4.5 4.5h7v7h-7z"],
  sliders: ["M2.5 5h5", "M11.5 5h2", "M2.5 11h2", "M8.5 11h5", "M9.5 3.3v3.4", "M6.5 9.3v3.4"],
  panelLeft: ["M2.5 3h11v10h-11z", "M6.2 3v10"],
  panelRight: ["M2.5 3h11v10h-11z", "M9.8 3v10"],
  theme: ["M8 2.5a5.5 5.5 0 1 0 0 11z", "M8 2.5a5.5 5.5 0 0 1 0 11"],
  chevronDown: ["M4 6.5l4 4 4-4"],
  chevronUp: ["M4 9.5l4-4 4 4"],
  pin: ["M6 2.5h4", "M6.7 2.5v4L4.5 9h7L9.3 6.5v-4", "M8 9v4.5"],
  door: ["M9 2.5H3.5v11H9", "M7 8h7", "M11.5 5.5L14 8l-2.5 2.5"],
};

export function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function icon(name) {
  const lines = ICONS[name].map((d) => svg("path", { d }));
  return svg("svg", { viewBox: "0 0 16 16", class: `kw-icon kw-icon-${name}`, "aria-hidden": "true" }, ...lines);
}

// A button with an icon. `label` is its accessible name and its tooltip.
export function iconButton(name, label, click, props = {}) {
  const kind = props.class ? ` ${props.class}` : "";
  return el(
    "button",
    { type: "button", "aria-label": label, title: label, ...props, class: `kw-button kw-bare${kind}`, on: { click } },
    icon(name),
  );
}

export function textButton(label, click, props = {}) {
  const kind = props.class ? ` ${props.class}` : "";
  return el("button", { type: "button", ...props, class: `kw-button${kind}`, on: { click } }, label);
}

// A word with a sentence behind it: the exact term, shown on hover and focus (hint.js).
export function term(words, hint) {
  return el("span", { class: "kw-term", tabindex: hint ? 0 : null, "data-hint": hint || null, text: words });
}

const SHAPES = { device: "●", host: "◉", disk: "○", engine: "◇", cold: "◌" };
const EXACT = {
  device: "Tier: device, the memory that the model computes in. The next message reads only what is new.",
  host: "Tier: host memory. Copied back before the next message.",
  disk: "Tier: disk. Restored before the next message.",
  engine: "Tier: engine, a server elsewhere. What it reported that it still had.",
  cold: "Tier: none (cold). The next message reads the whole conversation again.",
};
const words = {
  device: "in memory",
  host: "set aside in memory",
  disk: "on disk",
  engine: "in the engine",
  cold: "not kept",
};

// The server's words for the tiers: they depend on what the model runs on.
export function callTiers(given) {
  Object.assign(words, given);
}

export function tierWord(tier) {
  return words[tier] ?? words.cold;
}

// A tier looks the same everywhere: shape, word and colour. `quiet` hides the word from eyes, not from screen readers.
export function tierMark(tier, quiet = false) {
  const word = tierWord(tier);
  return el(
    "span",
    { class: `kw-tier kw-tier-${tier}`, title: quiet ? word : undefined },
    el("span", { "aria-hidden": "true", class: "kw-tier-shape", text: SHAPES[tier] ?? SHAPES.cold }),
    quiet ? el("span", { class: "kw-unseen", text: word }) : tierTerm(tier, word),
  );
}

function tierTerm(tier, word) {
  const node = term(word, EXACT[tier] ?? EXACT.cold);
  node.classList.add("kw-tier-word");
  return node;
}

// Makes `parent`'s children match `items`, rebuilding only those whose JSON changed: a press on one row, or the focus in
// it, survives a change of another row.
export function reconcile(parent, items, build) {
  const known = parent.kwRows ?? new Map();
  const rows = new Map();
  for (const item of items) {
    const json = JSON.stringify(item);
    const old = known.get(item.key);
    rows.set(item.key, old?.json === json ? old : { json, node: build(item, old?.node) });
  }
  const nodes = [...rows.values()].map((row) => row.node);
  for (const [index, node] of nodes.entries()) {
    if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] ?? null);
  }
  while (parent.children.length > nodes.length) parent.lastElementChild.remove();
  parent.kwRows = rows;
}

const ticked = new WeakMap(); // button -> its own icon, and the timer that brings it back

// Copies `text` and shows that on `button` for a moment.
export async function copyFrom(button, text) {
  await copyText(text);
  const { before, timer } = ticked.get(button) ?? { before: button.firstChild };
  clearTimeout(timer); // of a click a moment ago
  button.replaceChildren(icon("check"));
  button.setAttribute("aria-label", "Copied");
  const restore = () => {
    button.replaceChildren(before);
    button.setAttribute("aria-label", button.title);
  };
  ticked.set(button, { before, timer: setTimeout(restore, 1500) });
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Not a secure context (http on another machine's address): the old method still works there.
    const area = el("textarea", { class: "kw-unseen" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}
