// The address names the open conversation: #<conversation>. The part behind # survives every redirect of the log-in,
// and a page below a sub-path needs no addresses of its own for conversations.

// The conversation that the address names, "" for none.
export function named() {
  return location.hash.slice(1);
}

// Shows this conversation's address. `how`: "push" so that Back leads to the one before, "replace" where there is none.
export function show(conversationId, how) {
  if (named() === conversationId) return; // Back, Forward, a reload, a typed address
  if (how === "replace") history.replaceState(null, "", `#${conversationId}`);
  else history.pushState(null, "", `#${conversationId}`);
}

export function onChange(open) {
  addEventListener("hashchange", () => open(named()));
}
