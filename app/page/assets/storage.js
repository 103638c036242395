// What the browser keeps for a person. It may refuse to keep anything (site data blocked, or no space left): then it is
// kept as long as the page is open.

const refused = new Map(); // what the browser did not take

function storage(area) {
  const place = (key) => `${area} ${key}`;
  return {
    get(key) {
      if (refused.has(place(key))) return refused.get(place(key));
      try {
        return window[area].getItem(key);
      } catch {
        return null;
      }
    },
    set(key, value) {
      try {
        window[area].setItem(key, value);
        refused.delete(place(key));
      } catch {
        this.remove(key); // an older value must not come back in place of this one
        refused.set(place(key), value);
      }
    },
    remove(key) {
      refused.delete(place(key));
      try {
        window[area].removeItem(key);
      } catch {
        // Nothing was kept.
      }
    },
    keys() {
      try {
        return Object.keys(window[area]);
      } catch {
        return [];
      }
    },
  };
}

export const browserStorage = storage("localStorage"); // for every tab, until it is cleared
export const tabStorage = storage("sessionStorage"); // for this tab, also across a reload
