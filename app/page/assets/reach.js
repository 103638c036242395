// What is too wide or too high for its box scrolls. A box that scrolls can have the focus, so that the arrow keys reach
// all of it; one that does not scroll is no stop for the Tab key.

const observer = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const box = target.kwReachable ?? target;
    const scrolls = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
    if (scrolls) box.tabIndex = 0;
    else if (box.tabIndex === 0) box.removeAttribute("tabindex");
  }
});

// Watches `box` and what it holds. Returns `box`.
export function reachable(box) {
  observer.observe(box);
  if (box.firstElementChild) {
    box.firstElementChild.kwReachable = box;
    observer.observe(box.firstElementChild);
  }
  return box;
}
