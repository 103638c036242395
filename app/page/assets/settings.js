// The settings of one conversation, in a sheet over the chat. What is wrong is said below its field; what is not saved
// yet is only given up on purpose.
import { ask } from "./bridge.js";
import { emit, on, state } from "./bus.js";
import { el, iconButton, textButton } from "./dom.js";
import { isComposing } from "./keys.js";

const HEADING = "Settings of this conversation";
const inputs = new Map(); // the field's name -> its input
let form = null;
let heading = null;
let note = null;
let question = null; // whether to give up what is not saved
let owner = null; // the conversation whose settings are shown: {id, title}
let isChanged = false;

export function mount(element, { fields }) {
  heading = el("h2", { text: HEADING, dir: "auto" });
  note = el("p", { id: "kw-settings-note", role: "status" });
  question = el(
    "div",
    { class: "kw-unsaved", role: "alertdialog", "aria-label": "Unsaved changes", hidden: true },
    el("p", { text: "These settings are not saved." }),
    textButton("Keep editing", () => keepEditing(), { class: "kw-small" }),
    textButton("Discard changes", () => discard(), { class: "kw-small kw-danger" }),
  );
  form = el(
    "form",
    { class: "kw-form", novalidate: true, autocomplete: "off" },
    el("div", { class: "kw-fields" }, ...fields.map(field)),
    el(
      "div",
      { class: "kw-form-foot" },
      el("button", { type: "submit", id: "kw-settings-save", class: "kw-button kw-primary", text: "Save" }),
      note,
    ),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    save();
  });
  form.addEventListener("input", () => {
    isChanged = true;
    note.textContent = "";
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && isComposing(event)) event.preventDefault();
  });
  element.append(
    el(
      "div",
      { class: "kw-side-head" },
      heading,
      iconButton("close", "Close settings", () => closeSettings()),
    ),
    question,
    form,
  );
  on("leaving", () => {
    if (!isSettingsOpen()) return;
    if (isChanged) heading.textContent = `Settings of “${owner.title}”`;
    else hide();
  });
  addEventListener("beforeunload", (event) => {
    if (isSettingsOpen() && isChanged) event.preventDefault();
  });
}

function field({ name, label, info, kind }) {
  const id = `kw-set-${name.replaceAll("_", "-")}`;
  const shared = {
    id: `${id}-field`,
    class: "kw-input",
    "aria-describedby": `${id}-info ${id}-error`,
    dir: kind === "lines" ? "auto" : null,
    spellcheck: name === "system_prompt" ? null : "false",
  };
  const input =
    kind === "lines"
      ? el("textarea", { ...shared, rows: 2 })
      : el("input", { ...shared, type: "text", inputmode: kind === "whole" ? "numeric" : "decimal" });
  inputs.set(name, input);
  return el(
    "div",
    { class: "kw-field", id },
    el("label", { for: shared.id, text: label }),
    el("p", { class: "kw-field-info", id: `${id}-info`, text: info }),
    input,
    el("p", { class: "kw-field-error", id: `${id}-error`, role: "alert" }),
  );
}

function setError(input, sentence) {
  input.parentElement.querySelector(".kw-field-error").textContent = sentence;
  if (sentence) input.setAttribute("aria-invalid", "true");
  else input.removeAttribute("aria-invalid");
}

export function isSettingsOpen() {
  return document.getElementById("kw-settings").classList.contains("kw-shown");
}

// Opens only once the values have come, so that no one edits those of another conversation.
export async function openSettings() {
  if (isSettingsOpen()) return;
  const { conversationId: id, title } = state;
  const reply = await ask("settings", { conversation_id: id });
  if (id !== state.conversationId) return;
  if (reply.error) {
    emit("problem", reply.error);
    return;
  }
  owner = { id, title: title || "New conversation" };
  heading.textContent = HEADING;
  note.textContent = "";
  isChanged = false;
  for (const [name, input] of inputs) {
    input.value = reply.values[name];
    setError(input, "");
  }
  document.getElementById("kw-settings").classList.add("kw-shown");
  emit("sheet");
  inputs.values().next().value.focus();
}

// Closes the sheet, or asks first what becomes of changes. True if it was open.
export function closeSettings() {
  if (!isSettingsOpen()) return false;
  if (!isChanged) {
    hide();
    emit("focus");
  } else if (question.hidden) {
    question.hidden = false;
    question.querySelector("button").focus();
  } else {
    keepEditing();
  }
  return true;
}

function keepEditing() {
  question.hidden = true;
  inputs.values().next().value.focus();
}

function discard() {
  hide();
  emit("focus");
}

function hide() {
  isChanged = false;
  question.hidden = true;
  document.getElementById("kw-settings").classList.remove("kw-shown");
  emit("sheet");
}

async function save() {
  const values = Object.fromEntries([...inputs].map(([name, input]) => [name, input.value]));
  const reply = await ask("save_settings", { ...values, conversation_id: owner.id });
  const errors = reply.errors ?? {};
  for (const [name, input] of inputs) setError(input, errors[name] ?? "");
  const wrong = [...inputs].filter(([name]) => errors[name]);
  note.classList.toggle("kw-refused", Boolean(reply.error) || wrong.length > 0);
  if (reply.error) note.textContent = `Not saved. ${reply.error}`;
  else if (wrong.length) note.textContent = "Not saved: see below the fields that are marked.";
  else {
    note.textContent = "Saved. The next answer uses these settings.";
    // What was typed while it was being saved is not saved yet.
    isChanged = [...inputs].some(([name, input]) => input.value !== values[name]);
    question.hidden = true;
  }
  wrong[0]?.[1].focus();
}
