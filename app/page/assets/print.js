// Paper: all messages are on it, and nothing of them beside it.
import * as conversation from "./conversation.js";

const PAPER_PX = 640; // the width of a line on A4 or Letter
const TABLE_SCALE = 0.85; // of a table on paper: see media.css
const SHARE = "--kw-on-paper"; // of its size on the screen: see media.css

addEventListener("beforeprint", () => {
  fitFormulas();
  fitTables();
});

// Also what is not shown yet.
export async function printAll() {
  await conversation.showAll();
  print();
}

// A formula has no place where it may be broken: one that is too wide is set smaller.
function fitFormulas() {
  const formulas = [...document.querySelectorAll("#kw .kw-math")];
  const widths = formulas.map((formula) => formula.scrollWidth);
  for (const [index, formula] of formulas.entries()) {
    if (widths[index] > PAPER_PX) formula.style.setProperty(SHARE, String(PAPER_PX / widths[index]));
    else formula.style.removeProperty(SHARE);
  }
}

// A table that scrolls is as narrow as its words allow.
function fitTables() {
  for (const table of document.querySelectorAll("#kw .kw-table")) {
    const isTooWide = table.scrollWidth > table.clientWidth && table.scrollWidth * TABLE_SCALE > PAPER_PX;
    table.classList.toggle("kw-breaks", isTooWide);
  }
}
