// Draws only the rows of a long list that are seen, and a few more on each side. All rows of a kind have one height.
import { on } from "./bus.js";
import { reconcile } from "./dom.js";

const ROW_PX = 36; // panels.css has the same heights
const FOUND_PX = 54; // with a second line: the place of what was searched for
const HEADING_PX = 34;
const MARGIN_PX = 600; // above and below what is seen
const ALL = 100; // rows: so few are drawn at once

// `list` scrolls inside `box`. `show(items)` draws these items, of rows what `shown` makes of them, with `build`: see
// reconcile. An item without an `id` is a heading. `reach(-1)` scrolls to the first, `reach(1)` to the last.
export function listWindow(box, list, shown, build) {
  let items = [];
  let tops = [0];
  let places = []; // of the rows, headings not counted, for screen readers
  let count = 0;
  let drawn = "";

  const heightOf = (item) => (item.found ? FOUND_PX : item.id ? ROW_PX : HEADING_PX);
  const indexAt = (top) => {
    let low = 0;
    let high = items.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (tops[middle + 1] <= top) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  const seen = () => {
    if (items.length <= ALL) return [0, items.length];
    const top = box.scrollTop;
    return [indexAt(top - MARGIN_PX), Math.min(items.length, indexAt(top + box.clientHeight + MARGIN_PX) + 1)];
  };
  const draw = (isNew) => {
    const [from, to] = seen();
    if (!isNew && drawn === `${from} ${to}`) return;
    drawn = `${from} ${to}`;
    list.style.paddingTop = `${tops[from]}px`;
    list.style.paddingBottom = `${tops[items.length] - tops[to]}px`;
    list.classList.toggle("kw-windowed", items.length > ALL);
    const size = items.length > ALL ? count : undefined; // of a list that is there as a whole, it is known
    const place = (n) => size && places[from + n];
    const row = (item, n) => (item.id ? { ...shown(item), size, place: place(n) } : item);
    reconcile(list, items.slice(from, to).map(row), build);
  };
  box.addEventListener("scroll", () => draw(false), { passive: true });
  new ResizeObserver(() => draw(false)).observe(box);
  on("searching", () => {
    box.scrollTop = 0;
  });

  return {
    show(given) {
      items = given;
      tops = [0];
      places = [];
      count = 0;
      for (const item of items) {
        tops.push(tops.at(-1) + heightOf(item));
        places.push(item.id ? ++count : count);
      }
      draw(true);
    },
    reach(end) {
      box.scrollTop = end < 0 ? 0 : box.scrollHeight;
      draw(false);
    },
  };
}
