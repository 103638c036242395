// Runs inside the page before its first picture: the theme and the sidebars are those that this browser chose.
(() => {
  const INCOMPLETE = "A part of this page has not come. If nothing happens soon, reload the page.";
  const START_MS = 20000;
  const kept = (key) => {
    try {
      return localStorage.getItem(key);
    } catch {
      return null; // refused by a browser that blocks site data
    }
  };
  const root = document.documentElement;
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = kept("kw-theme") ?? (isDark ? "dark" : "light");
  root.style.colorScheme = root.dataset.theme;
  if (location.hash.length > 1) root.classList.add("kw-named"); // a conversation is opened, not the empty state
  for (const [side, width] of [
    ["left", 769],
    ["right", 1000],
  ]) {
    const isBeside = matchMedia(`(min-width: ${width}px)`).matches && kept(`kw-${side}`) !== "closed";
    document.getElementById("kw").classList.toggle(`kw-${side}-open`, isBeside);
  }

  // Until the message box has its script (composer.js), it is noted what Enter or an example would send.
  const box = () => document.querySelector(".kw-composer-text");
  const hasScript = () => box().nextElementSibling.firstElementChild !== null;
  const sends = (event) =>
    event.key === "Enter" &&
    !(event.isComposing || event.keyCode === 229 || event.shiftKey || matchMedia("(pointer: coarse)").matches);
  addEventListener("keydown", (event) => {
    if (event.target !== box() || hasScript() || !sends(event)) return;
    event.preventDefault();
    box().dataset.entered = box().value;
  });
  addEventListener("click", (event) => {
    if (event.target.matches(".kw-example") && !hasScript()) box().dataset.entered = event.target.textContent;
  });
  // And what is written until then is kept across a reload (drafts.js), behind what was kept before.
  const key = `kw-draft-of-${document.getElementById("kw").dataset.person}`;
  let left = {};
  try {
    left = JSON.parse(sessionStorage.getItem(key)) ?? left;
  } catch {
    // Refused, like above.
  }
  addEventListener("input", (event) => {
    if (event.target !== box() || hasScript()) return;
    const at = location.hash;
    const earlier = [left.earlier, left.text].filter(Boolean).join("\n");
    try {
      const isNew = left.isNew === true && left.at === at;
      sessionStorage.setItem(key, JSON.stringify({ text: box().value, earlier, isNew, at }));
    } catch {
      // Refused, like above.
    }
  });
  setTimeout(() => hasScript() || box().nextElementSibling.append(INCOMPLETE), START_MS);

  document.currentScript.remove(); // there is no script inside the page: what could be one would stand out
})();
