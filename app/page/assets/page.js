// Start-up, keyboard, theme and sidebars.
import * as address from "./address.js";
import { emit, on, state } from "./bus.js";
import * as conversation from "./conversation.js";
import * as drafts from "./drafts.js";
import { takeFiles } from "./files.js";
import { isComposing } from "./keys.js";
import { printAll } from "./print.js";
import { startPulse } from "./pulse.js";
import { closeSettings, isSettingsOpen } from "./settings.js";
import { cover, keepTabInside } from "./sheets.js";
import { browserStorage } from "./storage.js";
import { watchAnswers } from "./unread.js";

const WIDE = matchMedia("(min-width: 1000px)");
const MIDDLE = matchMedia("(min-width: 769px)");

export async function start() {
  drawSidebars();
  WIDE.addEventListener("change", drawSidebars);
  MIDDLE.addEventListener("change", drawSidebars);
  document.addEventListener("keydown", shortcut);
  document.addEventListener("keydown", keepTabInside);
  document.getElementById("kw").append(backdrop());
  on("sheet", drawSidebars);
  on("leaving", closeOverlays);
  watchAnswers();
  takeFiles();
  address.onChange((id) => (id ? conversation.open(id) : conversation.openNew("replace")));
  await conversation.begin(drafts.isForNew() ? "" : address.named());
  startPulse();
  document.documentElement.dataset.keepwarm = "ready";
}

// Sidebars stand beside the chat on wide screens, which remember whether they are open, and overlay it on narrow ones.

const chosen = { left: null, right: null };

function isOverlay(side) {
  return side === "left" ? !MIDDLE.matches : !WIDE.matches;
}

function isOpen(side) {
  if (isOverlay(side)) return chosen[side] === "overlay";
  return browserStorage.get(`kw-${side}`) !== "closed";
}

export function toggle(side) {
  setOpen(side, !isOpen(side));
}

function setOpen(side, open) {
  if (isOverlay(side)) {
    const other = side === "left" ? "right" : "left";
    if (open && isOverlay(other)) chosen[other] = null;
    chosen[side] = open ? "overlay" : null;
  } else {
    browserStorage.set(`kw-${side}`, open ? "open" : "closed");
  }
  drawSidebars();
  if (open && isOverlay(side)) document.querySelector(`#kw-${side} button, #kw-${side} input`)?.focus();
}

function drawSidebars() {
  const root = document.getElementById("kw");
  const shown = ["kw-centre"];
  let top = null;
  for (const side of ["left", "right"]) {
    const open = isOpen(side);
    root.classList.toggle(`kw-${side}-open`, open);
    if (open) shown.push(`kw-${side}`);
    if (open && isOverlay(side)) top = `kw-${side}`;
    const button = document.getElementById(`kw-toggle-${side}`);
    button?.setAttribute("aria-expanded", String(open));
    button?.setAttribute("aria-controls", `kw-${side}`);
  }
  if (isSettingsOpen()) top = "kw-settings";
  root.classList.toggle("kw-covered", top !== null);
  cover(top, shown);
}

function backdrop() {
  const curtain = document.createElement("div");
  curtain.id = "kw-backdrop";
  curtain.addEventListener("click", () => closeSettings() || closeOverlays());
  return curtain;
}

export function closeOverlays() {
  let closed = false;
  for (const side of ["left", "right"]) {
    if (isOverlay(side) && isOpen(side)) {
      setOpen(side, false);
      closed = true;
    }
  }
  return closed;
}

function showConversations() {
  if (!isOpen("left")) setOpen("left", true);
}

// Keyboard.

function shortcut(event) {
  if (isComposing(event) || event.defaultPrevented) return;
  const command = event.ctrlKey || event.metaKey;
  const key = event.key.toLowerCase();
  if (event.key === "Escape") onEscape(event.target);
  else if (isSettingsOpen()) return;
  else if (command && !event.shiftKey && key === "k") {
    event.preventDefault();
    showConversations();
    emit("search");
  } else if (command && event.shiftKey && key === "o") {
    event.preventDefault();
    conversation.openNew();
  } else if (command && !event.shiftKey && key === "p" && state.hidden > 0) {
    event.preventDefault();
    printAll();
  }
}

// Escape closes what is open, the last opened first; in the chat it stops the answer. In a sidebar it does nothing more.
function onEscape(target) {
  const cancelled = { done: false };
  emit("cancel", cancelled);
  if (cancelled.done || closeSettings()) return;
  if (closeOverlays()) emit("focus");
  else if (!target.closest?.("#kw-left, #kw-right")) conversation.stop();
}

// Theme: the system's until the person chooses one (first.js).

export function toggleTheme() {
  const root = document.documentElement;
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  root.style.colorScheme = root.dataset.theme;
  browserStorage.set("kw-theme", root.dataset.theme);
}
