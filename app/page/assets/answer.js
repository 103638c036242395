// Builds elements for a model's answer from the server's tree (app/page/markdown/nodes.py). An answer can only become
// what this file lists: elements by createElement, attributes one by one with checked values, everything else as text.
// There is no innerHTML here, and no attribute that loads, runs or covers anything.
import { copyText, el } from "./dom.js";
import { reachable } from "./reach.js";

const MATHML = "http://www.w3.org/1998/Math/MathML";
const SAFE_SCHEMES = new Set(["http:", "https:", "mailto:"]);
const PLAIN = {
  paragraph: "p",
  quote: "blockquote",
  bullets: "ul",
  item: "li",
  head: "thead",
  body: "tbody",
  row: "tr",
  rule: "hr",
  break: "br",
  emphasis: "em",
  strong: "strong",
  struck: "s",
  code: "code",
  note_mark: "sup",
};
const TOKENS = new Set(["comment", "string", "number", "keyword", "function", "class-name"]);
const ALIGNS = new Set(["left", "center", "right"]);
const MATH = new Set(
  "mrow mstyle mi mn mo mtext mspace mfrac msup msub msubsup munder mover munderover msqrt mroot mtable mtr mtd menclose".split(
    " ",
  ),
);
const KNOWS_DIRECTIONS = CSS.supports("selector(:dir(rtl))");
const FLAGS = /^(true|false)$/;
const SMALL = /^[0-3]?(\.\d+)?em$/;
const MATH_ATTRIBUTES = {
  stretchy: FLAGS,
  fence: FLAGS,
  separator: FLAGS,
  accent: FLAGS,
  accentunder: FLAGS,
  largeop: FLAGS,
  movablelimits: FLAGS,
  displaystyle: FLAGS,
  form: /^(prefix|infix|postfix)$/,
  mathvariant: /^normal$/,
  scriptlevel: /^[0-2]$/,
  linethickness: /^0$/,
  notation: /^box$/,
  minsize: SMALL,
  maxsize: SMALL,
  width: SMALL,
  lspace: SMALL,
  rspace: SMALL,
};

// Makes `body` show these blocks, each a JSON string, after what else it holds. Unchanged blocks are not touched, so a
// selection in them stays.
export function drawAnswer(body, blocks) {
  const drawn = body.kwBlocks ?? [];
  blocks.forEach((json, index) => {
    const old = drawn[index];
    if (old?.json === json) return;
    const tree = JSON.parse(json);
    if (old) {
      drawn[index] = { json, tree, node: directed(patch(old.node, old.tree, tree)), gap: old.gap };
      return;
    }
    const gap = document.createTextNode("\n");
    const node = directed(build(tree));
    body.append(node, gap);
    drawn[index] = { json, tree, node, gap };
  });
  for (const { node, gap } of drawn.splice(blocks.length)) {
    node.remove();
    gap.remove();
  }
  body.kwBlocks = drawn;
  if (KNOWS_DIRECTIONS) body.dir = drawn[0]?.node.matches?.(":dir(rtl)") ? "rtl" : "ltr";
}

// Each block is written from the side where its first word begins; code always from the left.
function directed(node) {
  if (node instanceof HTMLElement) node.dir = node.classList.contains("kw-code") ? "ltr" : "auto";
  return node;
}

function build(tree) {
  if (typeof tree === "string") return document.createTextNode(tree);
  const [kind, attributes, children] = tree;
  const node = element(kind, attributes);
  inside(node).append(...children.map(build));
  return node;
}

// The element that holds a node's children: a table or a code block is wrapped in another element.
function inside(node) {
  return node.kwInside ?? node;
}

function element(kind, attributes) {
  if (Object.hasOwn(PLAIN, kind)) return document.createElement(PLAIN[kind]);
  if (MATH.has(kind)) return mathElement(kind, attributes);
  return Object.hasOwn(BUILDERS, kind) ? BUILDERS[kind](attributes) : el("span");
}

const BUILDERS = {
  heading: ({ level }) => el([1, 2, 3, 4, 5, 6].includes(level) ? `h${level}` : "p"),
  numbers: ({ start }) => el("ol", { start: Number.isInteger(start) ? start : null }),
  task: ({ done }) => {
    const props = {
      class: "kw-task",
      role: "checkbox",
      "aria-checked": String(done === true),
      "aria-disabled": "true",
    };
    return el("span", { ...props, "aria-label": done === true ? "done" : "to do", text: done === true ? "☑" : "☐" });
  },
  table: () => around(reachable(el("div", { class: "kw-table" })), el("table")),
  note: () => el("div", { class: "kw-note-text" }),
  note_link: noteLink,
  cell: (attributes) => el("td", cellClass(attributes)),
  header_cell: (attributes) => el("th", { scope: "col", ...cellClass(attributes) }),
  code_block: codeBlock,
  token: (attributes) => el("span", { class: TOKENS.has(attributes.class) ? `token ${attributes.class}` : null }),
  link,
  math: ({ display, source }) => {
    const math = document.createElementNS(MATHML, "math");
    if (display === true) math.setAttribute("display", "block");
    const box = el("span", { class: `kw-math${display === true ? " kw-math-block" : ""}`, title: String(source) });
    return around(display === true ? reachable(box) : box, math);
  },
  math_source: ({ display }) => el("span", { class: `kw-math-source${display === true ? " kw-math-block" : ""}` }),
};

function around(box, child) {
  box.append(child);
  box.kwInside = child;
  return box;
}

function cellClass({ align, wide }) {
  const names = [ALIGNS.has(align) ? `kw-align-${align}` : "", wide === true ? "kw-wide" : ""];
  return { class: names.filter(Boolean).join(" ") || null };
}

function codeBlock() {
  const code = el("code");
  const copy = el("button", {
    type: "button",
    class: "kw-code-copy",
    "aria-label": "Copy code",
    title: "Copy code",
    on: { click: () => copyCode(copy, code) },
  });
  const box = el("div", { class: "kw-code" }, reachable(el("pre", {}, code)), copy);
  box.kwInside = code;
  return box;
}

// The mark of a footnote; a click shows the note with the same mark in the same answer.
function noteLink() {
  const button = el("button", { type: "button", class: "kw-note-link", title: "Show the note", on: { click: show } });
  function show() {
    const marks = button.closest(".md").querySelectorAll(".kw-note-text > sup");
    const note = [...marks].find((mark) => mark.textContent === button.textContent)?.parentElement;
    if (!note) return;
    note.tabIndex = -1;
    note.focus({ preventScroll: true });
    note.scrollIntoView({ block: "nearest" });
  }
  return around(el("sup"), button);
}

async function copyCode(button, code) {
  await copyText(code.textContent.replace(/\n$/, ""));
  button.classList.add("kw-copied");
  button.setAttribute("aria-label", "Copied");
  setTimeout(() => {
    button.classList.remove("kw-copied");
    button.setAttribute("aria-label", button.title);
  }, 1500);
}

// A picture becomes a link too: fetching it would reveal its address's contents to its host without a click.
function link({ href, picture }) {
  if (!isSafe(href)) return el("span");
  return el("a", {
    href,
    rel: "noopener noreferrer",
    target: "_blank",
    referrerpolicy: "no-referrer",
    class: picture === true ? "kw-picture" : null,
    title: picture === true ? `Picture, not loaded: ${href}` : null,
  });
}

function isSafe(href) {
  try {
    return SAFE_SCHEMES.has(new URL(href).protocol);
  } catch {
    return false;
  }
}

function mathElement(kind, attributes) {
  const node = document.createElementNS(MATHML, kind);
  for (const [name, value] of Object.entries(attributes)) {
    if (Object.hasOwn(MATH_ATTRIBUTES, name) && MATH_ATTRIBUTES[name].test(value)) node.setAttribute(name, value);
  }
  return node;
}

// Updates `node`, which was built from the tree `was`, to match the tree `now`.
function patch(node, was, now) {
  if (typeof now === "string" && typeof was === "string") {
    if (now.startsWith(was)) node.appendData(now.slice(was.length));
    else node.data = now;
    return node;
  }
  if (typeof now !== "string" && was[0] === now[0] && same(was[1], now[1])) {
    patchChildren(inside(node), was[2], now[2]);
    return node;
  }
  const fresh = build(now);
  node.replaceWith(fresh);
  return fresh;
}

function patchChildren(parent, was, now) {
  now.forEach((tree, index) => {
    if (index >= was.length) parent.append(build(tree));
    else if (!same(was[index], tree)) patch(parent.childNodes[index], was[index], tree);
  });
  for (let left = was.length; left > now.length; left--) parent.lastChild.remove();
}

function same(one, other) {
  return JSON.stringify(one) === JSON.stringify(other);
}
