// A sheet lies over the chat: a sidebar on a narrow screen, or the settings. What lies behind it cannot be reached, and
// Tab stays inside.

const PARTS = {
  "kw-left": "Conversations",
  "kw-centre": "",
  "kw-right": "Memory",
  "kw-settings": "Settings of this conversation",
};
const STOPS = "a[href], button, input, textarea, select, summary, [tabindex='0']";

// `top` is the id of the sheet, null for none; `shown` are the ids of the parts that stand beside each other.
export function cover(top, shown) {
  for (const [id, name] of Object.entries(PARTS)) {
    const part = document.getElementById(id);
    const isSheet = id === top;
    part.inert = top ? !isSheet : !shown.includes(id);
    for (const [attribute, value] of [
      ["role", "dialog"],
      ["aria-modal", "true"],
      ["aria-label", name],
    ]) {
      if (isSheet) part.setAttribute(attribute, value);
      else part.removeAttribute(attribute);
    }
  }
}

export function keepTabInside(event) {
  const sheet = document.querySelector("#kw > [aria-modal]");
  if (event.key !== "Tab" || !sheet) return;
  const stops = [...sheet.querySelectorAll(STOPS)].filter((one) => !one.disabled && one.getClientRects().length > 0);
  const at = stops.indexOf(document.activeElement);
  const end = event.shiftKey ? 0 : stops.length - 1;
  if (at !== -1 && at !== end) return;
  event.preventDefault();
  stops.at(event.shiftKey ? -1 : 0)?.focus();
}
