// The left sidebar: search, the list of conversations, renaming and deleting.
import { ask } from "./bridge.js";
import { emit, mounted, on, state } from "./bus.js";
import * as conversation from "./conversation.js";
import { el, icon, iconButton, textButton, tierMark } from "./dom.js";
import { listWindow } from "./list_window.js";
import * as page from "./page.js";

let editing = null; // {id, kind: "rename" | "delete"}
let latest = [];

export function mount(element, facts) {
  page.applyTheme();
  const search = el("input", {
    type: "search",
    class: "kw-input",
    placeholder: "Search",
    "aria-label": "Search conversations",
    "data-testid": "search",
  });
  const list = el("div", { class: "kw-list", role: "list", "aria-label": "Conversations" });
  const nothing = el("p", { class: "kw-empty", text: "Nothing found.", hidden: true });
  const box = el("div", { class: "kw-list-box" }, list, nothing);
  const drawRows = listWindow(box, list);
  const add = textButton("", conversation.openNew, { class: "kw-new", title: "Ctrl+Shift+O", "data-testid": "new" });
  add.append(icon("plus"), el("span", { text: "New conversation" }));
  const foot = el(
    "div",
    { class: "kw-side-foot" },
    iconButton("theme", "Dark or light", page.toggleTheme, { id: "kw-theme" }),
  );
  if (facts.needs_login) foot.append(leave());
  element.append(
    el(
      "nav",
      { class: "kw-side", "aria-label": "Conversations" },
      el("p", { class: "kw-brand" }, brandMark(), el("span", { text: "Keepwarm" })),
      add,
      el("label", { class: "kw-search" }, icon("search"), search, el("kbd", { text: "Ctrl K", "aria-hidden": "true" })),
      box,
      foot,
    ),
  );

  const draw = () => {
    drawRows(flatten(latest), build);
    nothing.hidden = latest.length > 0;
  };
  search.addEventListener("input", () => emit("searching", search.value));
  search.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && search.value) {
      event.stopPropagation();
      search.value = "";
      emit("searching", "");
    } else if (event.key === "Enter") list.querySelector(".kw-open")?.click();
  });
  on("search", () => search.focus());
  on("selected", draw);
  on("editing", draw);
  on("pulse", (news) => {
    latest = news.conversations;
    draw();
  });
  mounted("conversations");
}

function flatten(groups) {
  const items = [];
  for (const group of groups) {
    items.push({ key: `heading ${group.heading}`, heading: group.heading });
    for (const { updated_at: _, ...row } of group.rows) {
      const edited = editing?.id === row.id ? editing.kind : "";
      items.push({ key: row.id, ...row, here: row.id === state.conversationId, edited });
    }
  }
  return items;
}

function build(item, old) {
  if (item.heading) return el("p", { class: "kw-day", text: item.heading });
  if (item.edited && old?.dataset.edited === item.edited) return old; // a half-typed name survives the pulse
  const row = el("div", {
    class: "kw-row",
    role: "listitem",
    "aria-setsize": item.size,
    "aria-posinset": item.place,
    "aria-current": item.here ? "true" : null,
    "data-testid": "conversation",
    "data-id": item.id,
    "data-edited": item.edited,
  });
  if (item.edited === "rename") row.append(...renaming(item));
  else if (item.edited === "delete") row.append(...deleting(item));
  else row.append(...showing(item));
  return row;
}

function showing(item) {
  const button = el(
    "button",
    { type: "button", class: "kw-open", title: item.title, on: { click: () => choose(item.id) } },
    item.is_running
      ? el("span", { class: "kw-dots", "aria-label": "answering" }, el("i"), el("i"), el("i"))
      : tierMark(item.tier, true),
    el("span", { class: "kw-row-title", text: item.title }),
  );
  const tools = el(
    "span",
    { class: "kw-row-tools" },
    iconButton("pencil", `Rename ${item.title}`, () => change(item.id, "rename"), { "data-testid": "rename" }),
    iconButton("trash", `Delete ${item.title}`, () => change(item.id, "delete"), { "data-testid": "delete" }),
  );
  return [button, tools];
}

function renaming(item) {
  const input = el("input", { class: "kw-input", "aria-label": "New name", maxlength: 120, "data-testid": "name" });
  input.value = item.title;
  const save = async () => {
    if (editing?.id !== item.id) return;
    const title = input.value.trim();
    change(null);
    if (!title || title === item.title) return;
    if (await tell("rename", { conversation_id: item.id, title })) {
      if (item.id === state.conversationId) emit("renamed", title);
    }
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") save();
    else if (event.key === "Escape") {
      event.stopPropagation();
      change(null);
    }
  });
  input.addEventListener("blur", save);
  queueMicrotask(() => input.select());
  return [input];
}

function deleting(item) {
  const sure = textButton("Delete", () => remove(item), { class: "kw-danger kw-small", "data-testid": "delete-sure" });
  queueMicrotask(() => sure.focus());
  return [
    el("span", { class: "kw-row-title", text: "Delete for good?" }),
    sure,
    textButton("Keep", () => change(null), { class: "kw-small" }),
  ];
}

async function remove(item) {
  change(null);
  const next = latest.flatMap((group) => group.rows).find((row) => row.id !== item.id);
  if (!(await tell("delete", { conversation_id: item.id }))) return;
  sessionStorage.removeItem(`kw-draft-${item.id}`);
  if (item.id !== state.conversationId) return;
  if (next) await conversation.open(next.id);
  else await conversation.openNew();
}

function change(id, kind) {
  editing = id ? { id, kind } : null;
  emit("editing");
}

async function choose(id) {
  await conversation.open(id);
  emit("focus");
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
    { method: "get", action: "/logout" },
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
