// One row of the list of conversations: as a link with its tools, with a field for its new name, or with the question
// before it is deleted.
import { el, iconButton, textButton, tierMark } from "./dom.js";
import { isComposing } from "./keys.js";

// Builds a row. `act` is what its parts can do: see conversations.js.
export function conversationRow(item, old, act) {
  if (!item.id) return el("p", { class: "kw-day", text: item.heading });
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
    "data-found": item.found ? "" : null,
  });
  if (item.edited === "rename") row.append(...renaming(item, act));
  else if (item.edited === "delete") row.append(...deleting(item, act));
  else row.append(...showing(item, act));
  return row;
}

function showing(item, act) {
  const link = el(
    "a",
    {
      href: `#${item.id}`,
      class: "kw-open",
      title: item.title,
      "data-testid": "open",
      on: { click: (event) => act.choose(event, item) },
    },
    item.is_running
      ? el("span", { class: "kw-dots", role: "img", "aria-label": "answering" }, el("i"), el("i"), el("i"))
      : tierMark(item.tier, true),
    el(
      "span",
      { class: "kw-row-text" },
      el("span", { class: "kw-row-title", dir: "auto", text: item.title }),
      item.found ? place(item.found) : null,
    ),
    item.unread ? el("span", { class: "kw-unread", role: "img", "aria-label": "new answer", text: "●" }) : null,
  );
  const tools = el(
    "span",
    { class: "kw-row-tools" },
    iconButton("pencil", `Rename ${item.title}`, () => act.edit(item.id, "rename"), { "data-testid": "rename" }),
    iconButton("trash", `Delete ${item.title}`, () => act.edit(item.id, "delete"), { "data-testid": "delete" }),
  );
  return [link, tools];
}

// Where the messages contain what was searched for.
function place([before, found, after]) {
  return el("span", { class: "kw-row-found", dir: "auto" }, before, el("mark", { text: found }), after);
}

function renaming(item, act) {
  const input = el("input", {
    class: "kw-input",
    dir: "auto",
    "aria-label": "New name",
    maxlength: 120,
    "data-testid": "name",
  });
  input.value = item.title;
  const save = (keepsFocus) => {
    if (!act.isEditing(item.id)) return;
    const title = input.value.trim();
    if (keepsFocus) act.stopEditing(item.id, "rename");
    else act.edit(null);
    if (!title || title === item.title) return;
    act.rename(item.id, title);
  };
  input.addEventListener("keydown", (event) => {
    if (isComposing(event)) return;
    if (event.key === "Enter") {
      event.preventDefault(); // or the button that gets the focus would be pressed by it
      save(true);
    } else if (event.key === "Escape") {
      event.stopPropagation();
      act.stopEditing(item.id, "rename");
    }
  });
  input.addEventListener("blur", () => save(false));
  queueMicrotask(() => {
    input.focus();
    input.select();
  });
  return [input];
}

function deleting(item, act) {
  const sure = textButton("Delete", () => act.remove(item), {
    class: "kw-danger kw-small",
    "data-testid": "delete-sure",
  });
  const keep = textButton("Keep", () => act.stopEditing(item.id, "delete"), { class: "kw-small" });
  queueMicrotask(() => sure.focus());
  const question = `Delete “${item.title}” for good?`;
  const box = el(
    "div",
    { class: "kw-ask", role: "alertdialog", "aria-label": question },
    el("p", { dir: "auto", text: question }),
    el("div", { class: "kw-ask-buttons" }, sure, keep),
  );
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || isComposing(event)) return;
    event.stopPropagation();
    act.stopEditing(item.id, "delete");
  });
  return [box];
}
