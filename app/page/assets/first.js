// Runs inside the page before its first picture: the theme and the sidebars are those that this browser chose.
(() => {
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
  document.currentScript.remove(); // there is no script inside the page: what could be one would stand out
})();
