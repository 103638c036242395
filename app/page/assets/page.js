// Start-up, keyboard, theme, sidebars, and the address: #<conversation> names the open conversation.
import { emit, on } from "./bus.js";
import * as conversation from "./conversation.js";
import { startPulse } from "./pulse.js";
import { closeSettings } from "./settings.js";

const WIDE = matchMedia("(min-width: 1000px)");
const MIDDLE = matchMedia("(min-width: 769px)");

export async function start() {
  drawSidebars();
  WIDE.addEventListener("change", drawSidebars);
  MIDDLE.addEventListener("change", drawSidebars);
  document.addEventListener("keydown", shortcut);
  document.getElementById("kw").append(backdrop());
  on("selected", (id) => {
    if (location.hash !== `#${id}`) history.replaceState(null, "", `#${id}`);
    if (!WIDE.matches) for (const side of ["left", "right"]) if (isOverlay(side)) setOpen(side, false);
  });
  addEventListener("hashchange", () => conversation.open(location.hash.slice(1)));
  const named = location.hash.slice(1);
  if (named) await conversation.open(named);
  else await conversation.openNew();
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
  return remembered(side) !== "closed";
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
    localStorage.setItem(`kw-${side}`, open ? "open" : "closed");
  }
  drawSidebars();
  if (open && isOverlay(side)) document.querySelector(`#kw-${side} button, #kw-${side} input`)?.focus();
}

function remembered(side) {
  try {
    return localStorage.getItem(`kw-${side}`);
  } catch {
    return null;
  }
}

function drawSidebars() {
  const root = document.getElementById("kw");
  let covered = false;
  for (const side of ["left", "right"]) {
    const open = isOpen(side);
    root.classList.toggle(`kw-${side}-open`, open);
    covered ||= open && isOverlay(side);
    const sidebar = document.getElementById(`kw-${side}`);
    sidebar.inert = !open;
    const button = document.getElementById(`kw-toggle-${side}`);
    button?.setAttribute("aria-expanded", String(open));
    button?.setAttribute("aria-controls", `kw-${side}`);
  }
  root.classList.toggle("kw-covered", covered);
}

function backdrop() {
  const cover = document.createElement("div");
  cover.id = "kw-backdrop";
  cover.addEventListener("click", closeOverlays);
  return cover;
}

function closeOverlays() {
  let closed = false;
  for (const side of ["left", "right"]) {
    if (isOverlay(side) && isOpen(side)) {
      setOpen(side, false);
      closed = true;
    }
  }
  return closed;
}

export function showConversations() {
  if (!isOpen("left")) setOpen("left", true);
}

// Keyboard.

function shortcut(event) {
  const command = event.ctrlKey || event.metaKey;
  if (command && !event.shiftKey && event.key.toLowerCase() === "k") {
    event.preventDefault();
    showConversations();
    emit("search");
  } else if (command && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    conversation.openNew();
  } else if (event.key === "Escape" && !event.isComposing) {
    if (closeSettings() || closeOverlays()) emit("focus");
    else conversation.stop();
  }
}

// Theme: the system's until the person chooses one. Gradio reads the class `dark` on the body, and so do our styles.

export function toggleTheme() {
  const dark = !document.body.classList.contains("dark");
  localStorage.setItem("kw-theme", dark ? "dark" : "light");
  applyTheme();
}

export function applyTheme() {
  const theme = localStorage.getItem("kw-theme");
  if (theme) document.body.classList.toggle("dark", theme === "dark");
  document.documentElement.style.colorScheme = document.body.classList.contains("dark") ? "dark" : "light";
}
