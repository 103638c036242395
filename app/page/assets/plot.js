// Plots bytes by tier over time: one line per tier, distinguished by dashes as well as colour.
import { el, svg, tierMark } from "./dom.js";

const WIDTH = 280;
const HEIGHT = 44;
const EDGE = 2;

export function plot({ lines, largest, since, words }) {
  const place = ([x, y]) => `${(x * WIDTH).toFixed(1)} ${(HEIGHT - EDGE - y * (HEIGHT - 2 * EDGE)).toFixed(1)}`;
  const drawn = [];
  for (const { tier, points } of lines) {
    const line = `M${points.map(place).join("L")}`;
    drawn.push(svg("path", { class: `kw-plot-area kw-tier-${tier}`, d: `${line}L${WIDTH} ${HEIGHT}L0 ${HEIGHT}Z` }));
    drawn.push(svg("path", { class: `kw-plot-line kw-plot-${tier} kw-tier-${tier}`, d: line }));
  }
  const frame = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": words };
  return el(
    "figure",
    { class: "kw-plot", "data-testid": "plot" },
    el("figcaption", { class: "kw-plot-legend" }, ...lines.map(({ tier }) => key(tier))),
    el("div", { class: "kw-plot-frame" }, svg("svg", frame, ...drawn)),
    el(
      "div",
      { class: "kw-plot-axis kw-figures" },
      el("span", { text: since }),
      el("span", { text: largest ? `max: ${largest}` : "" }),
      el("span", { text: "now" }),
    ),
  );
}

function key(tier) {
  const sample = svg("path", { class: `kw-plot-line kw-plot-${tier} kw-tier-${tier}`, d: "M0 3H20" });
  const line = svg("svg", { viewBox: "0 0 20 6", class: "kw-plot-key", "aria-hidden": "true" }, sample);
  return el("span", {}, line, tierMark(tier));
}
