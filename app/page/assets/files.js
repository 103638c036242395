// Files that are dropped or pasted: the text of one goes where it is dropped, or into the message box. Anything else is
// said. Without this a browser would leave the page and show the file.
import { emit } from "./bus.js";

const MOST_BYTES = 1024 * 1024;
const NOT_TEXT = " is not text. Only the text of a file can be part of a message.";
const TOO_LARGE = " is too large: the text of a file of up to 1 MiB can be part of a message.";

export function takeFiles() {
  addEventListener("dragover", (event) => isOfFiles(event.dataTransfer) && event.preventDefault());
  addEventListener("drop", (event) => take(event, event.dataTransfer));
  addEventListener("paste", (event) => take(event, event.clipboardData));
}

// A table or a picture that is copied comes as text as well, mostly: then that is pasted.
function isOfFiles(data) {
  return data?.types.includes("Files") && !data.types.includes("text/plain");
}

async function take(event, data) {
  if (!isOfFiles(data)) return;
  event.preventDefault();
  const field = event.target.closest?.("textarea") ?? document.querySelector(".kw-composer-text");
  const texts = [];
  for (const file of [...data.files]) {
    const name = `“${file.name}”`;
    const text = file.size > MOST_BYTES ? null : await textOf(file);
    if (file.size > MOST_BYTES) emit("problem", name + TOO_LARGE);
    else if (text === null) emit("problem", name + NOT_TEXT);
    else texts.push(text);
  }
  if (texts.length) insert(field, texts.reduce(onItsOwnLine));
}

function onItsOwnLine(before, text) {
  return !before || before.endsWith("\n") ? before + text : `${before}\n${text}`;
}

// null for what is no text: a picture, a PDF, a folder.
async function textOf(file) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    return text.includes("\0") ? null : text.replaceAll("\r\n", "\n");
  } catch {
    return null;
  }
}

function insert(field, text) {
  field.setRangeText(text, field.selectionStart, field.selectionEnd, "end");
  field.dispatchEvent(new Event("input", { bubbles: true }));
  field.focus();
}
