// Moments as a person here writes them, in this browser's time zone. The server sends seconds since 1970.

export function clock(at) {
  return new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
}

// "just now", "12 min ago", "at 09:41" on the same day, or "12 Oct".
export function moment(at) {
  const then = new Date(at * 1000);
  const seconds = (Date.now() - then) / 1000;
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (then.toDateString() === new Date().toDateString()) return `at ${clock(at)}`;
  return then.toLocaleDateString([], { day: "numeric", month: "short" });
}
