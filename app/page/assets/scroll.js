// Keeps the end in sight while text grows, until somebody scrolls up; then a button leads back.
import { on } from "./bus.js";
import { el, icon } from "./dom.js";

const NEAR_PX = 48;
const HAND_MS = 800;

export function followEnd(scroller, contents) {
  let pinned = true;
  const button = el(
    "button",
    {
      type: "button",
      id: "kw-to-end",
      class: "kw-button",
      "aria-label": "To the end",
      title: "To the end",
      hidden: true,
    },
    icon("down"),
  );
  scroller.after(button);

  const isNear = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_PX;
  const toEnd = () => {
    scroller.scrollTop = scroller.scrollHeight;
  };
  const pin = (value) => {
    pinned = value;
    button.hidden = pinned || isNear();
  };

  // While messages change places the browser moves the text too; only what follows a hand is a person's scrolling.
  let handUntil = 0;
  const hand = () => {
    handUntil = performance.now() + HAND_MS;
  };
  for (const type of ["wheel", "touchmove", "pointerdown", "keydown"]) {
    scroller.addEventListener(type, hand, { passive: true });
  }
  scroller.addEventListener(
    "scroll",
    () => {
      if (isNear()) pin(true);
      else if (performance.now() < handUntil) {
        hand();
        pin(false);
      }
    },
    { passive: true },
  );
  scroller.addEventListener("wheel", (event) => event.deltaY < 0 && pin(false), { passive: true });
  button.addEventListener("click", () => {
    pin(true);
    toEnd();
  });
  const observer = new ResizeObserver(() => (pinned ? toEnd() : pin(false)));
  for (const content of [scroller, ...contents]) observer.observe(content);
  for (const name of ["leaving", "sent"]) {
    on(name, () => {
      pin(true);
      toEnd();
    });
  }
}
