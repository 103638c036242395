// The left sidebar: search, the list of conversations, renaming and deleting.
import { ask } from "./bridge.js";
import { emit, on, state } from "./bus.js";
import * as conversation from "./conversation.js";
import { conversationRow } from "./conversation_row.js";
import { el, icon, iconButton, textButton } from "./dom.js";
import * as drafts from "./drafts.js";
import { isComposing } from "./keys.js";
import { listWindow } from "./list_window.js";
import * as page from "./page.js";
import { isUnread } from "./unread.js";

const ACTS = { choose, edit, isEditing: (id) => editing?.id === id, stopEditing, rename, remove };
let editing = null; // {id, kind: "rename" | "delete"}
let latest = [];
let searched = ""; // what `latest` was searched for
let list = null;
let rows = null; // of the list: see list_window.js
let search = null;
let add = null;

export function mount(element, facts) {
  search = el("input", {
    type: "search",
    class: "kw-input",
    dir: "auto",
    placeholder: "Search",
    "aria-label": "Search conversations",
    "data-testid": "search",
  });
  list = el("div", { class: "kw-list", role: "list", "aria-label": "Conversations" });
  const nothing = el("p", { class: "kw-empty", role: "status" });
  const box = el("div", { class: "kw-list-box" }, list, nothing);
  rows = listWindow(box, list, shown, (item, old) => conversationRow(item, old, ACTS));
  add = textButton("", begin, { class: "kw-new", title: "Ctrl+Shift+O", "data-testid": "new" });
  add.append(icon("plus"), el("span", { text: "New conversation" }));
  const foot = el(
    "div",
    { class: "kw-side-foot" },
    iconButton("theme", "Dark or light", page.toggleTheme, { id: "kw-theme" }),
  );
  if (facts.needs_login) foot.append(leave());
  element.replaceChildren(
    el(
      "nav",
      { class: "kw-side", "aria-label": "Conversations" },
      el(
        "div",
        { class: "kw-side-head" },
        el("p", { class: "kw-brand" }, brandMark(), el("span", { text: "Keepwarm" })),
        iconButton("close", "Close conversations", () => page.toggle("left"), { class: "kw-phone-only" }),
      ),
      add,
      el("label", { class: "kw-search" }, icon("search"), search, el("kbd", { text: "Ctrl K", "aria-hidden": "true" })),
      box,
      foot,
    ),
  );

  let opensFirst = false; // Enter was pressed before what was searched for had come
  const draw = () => {
    const held = list.contains(document.activeElement) ? document.activeElement : null;
    const row = held?.closest(".kw-row")?.dataset.id;
    rows.show(withHeadings(latest));
    // A row that was redrawn keeps the focus.
    if (held && !list.contains(document.activeElement)) part(row, held.dataset.testid)?.focus();
    nothing.textContent = latest.length > 0 ? "" : "Nothing found.";
  };
  search.addEventListener("input", () => {
    opensFirst = false;
    emit("searching", search.value);
  });
  search.addEventListener("keydown", (event) => {
    if (isComposing(event)) return;
    if (event.key === "Escape") {
      event.preventDefault(); // it stops no answer, and closes nothing
      event.stopPropagation();
      if (search.value) {
        search.value = "";
        emit("searching", "");
      } else emit("focus");
    } else if (event.key === "Enter") {
      opensFirst = searched !== search.value;
      if (!opensFirst) links()[0]?.click();
    } else if (event.key === "ArrowDown") {
      event.preventDefault();
      links()[0]?.focus();
    }
  });
  list.addEventListener("keydown", walk);
  on("search", () => {
    search.focus();
    search.select();
  });
  for (const name of ["selected", "editing", "unread"]) on(name, draw);
  on("cancel", (cancelled) => {
    if (!editing) return;
    cancelled.done = true;
    stopEditing(editing.id, editing.kind);
  });
  on("pulse", (news) => {
    latest = news.rows;
    searched = news.search;
    draw();
    if (opensFirst && searched === search.value) {
      opensFirst = false;
      links()[0]?.click();
    }
  });
}

function links() {
  return [...list.querySelectorAll(".kw-open")];
}

function part(id, testId) {
  const row = list.querySelector(`.kw-row[data-id="${id}"]`);
  return row?.querySelector(`[data-testid="${testId}"]`) ?? row?.querySelector(".kw-open");
}

// The arrow keys walk from one conversation to the next.
function walk(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const end = { Home: -1, End: 1 }[event.key];
  const at = links().indexOf(document.activeElement);
  if (at === -1 || isComposing(event) || !(step || end)) return;
  event.preventDefault();
  if (end) rows.reach(end); // what is not seen is not drawn either
  if (end)
    links()
      .at(end < 0 ? 0 : -1)
      ?.focus();
  else if (at + step < 0) search.focus();
  else links()[at + step]?.focus();
}

// The rows as they came, with a heading before the first of each day. There may be tens of thousands: none is copied.
function withHeadings(given) {
  const items = [];
  for (const row of given) {
    const { heading } = row;
    if (items.at(-1)?.heading !== heading) items.push({ key: `heading ${heading}`, heading });
    items.push(row);
  }
  return items;
}

// What of a row is drawn.
function shown({ updated_at: _, heading: __, ...row }) {
  const edited = editing?.id === row.id ? editing.kind : "";
  return { key: row.id, ...row, here: row.id === state.conversationId, edited, unread: isUnread(row.id) };
}

async function rename(id, title) {
  if (!(await tell("rename", { conversation_id: id, title }))) return;
  if (id === state.conversationId) emit("renamed", title);
}

async function remove(item) {
  const ids = links().map((link) => link.closest(".kw-row").dataset.id);
  const at = [...list.querySelectorAll(".kw-row")].findIndex((row) => row.dataset.id === item.id);
  const next = ids[at] ?? ids.at(-1); // the row that takes its place
  edit(null);
  (part(next, "open") ?? add).focus();
  state.removing = item.id;
  if (!(await tell("delete", { conversation_id: item.id }))) {
    state.removing = "";
    return;
  }
  drafts.forget(item.id);
  if (item.id !== state.conversationId) return;
  if (next) await conversation.open(next, "replace");
  else await conversation.openNew("replace");
}

function edit(id, kind) {
  editing = id ? { id, kind } : null;
  emit("editing");
}

// Back to the row as it was, with the focus where the editing began.
function stopEditing(id, kind) {
  edit(null);
  part(id, kind)?.focus();
}

async function choose(event, item) {
  if (event.button || event.ctrlKey || event.metaKey || event.shiftKey) return; // into a tab or window of its own
  event.preventDefault();
  await conversation.open(item.id, "push", item.found ? searched : "");
  page.closeOverlays();
  emit("focus");
}

async function begin() {
  await conversation.openNew();
  page.closeOverlays(); // also if an empty one was open already
}

async function tell(name, details) {
  const reply = await ask(name, details);
  if (reply.error) emit("problem", reply.error);
  emit("changed");
  return !reply.error;
}

// A separate page asks whether this browser should keep the conversations.
function leave() {
  return el(
    "form",
    // The other tabs look often for a while, and notice when it is done.
    { method: "get", action: "logout", on: { submit: () => emit("changed") } },
    el(
      "button",
      {
        type: "submit",
        class: "kw-button kw-bare",
        "aria-label": "Log out",
        title: "Log out",
        "data-testid": "log-out",
      },
      icon("door"),
    ),
  );
}

// The logo: three rising lines, like warm air.
function brandMark() {
  return el("span", { class: "kw-brand-mark", "aria-hidden": "true" }, el("i"), el("i"), el("i"));
}
