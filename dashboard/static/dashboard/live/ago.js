// How long ago things were, by the server's clock, in words; the viewer's own time on pointing at them.

const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });
const short = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

let ahead = 0; // milliseconds that the server's clock is ahead of ours

export function setClock(serverSeconds) {
  ahead = serverSeconds * 1000 - Date.now();
}

export function words(seconds) {
  if (seconds < 1) return "just now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  return `${Math.floor(seconds / 3600)} h ago`;
}

export function refresh(root) {
  const now = Date.now() + ahead;
  for (const time of root.querySelectorAll("time[data-ago]")) {
    const at = Date.parse(time.dateTime);
    const seconds = (now - at) / 1000;
    const text = seconds < 86400 ? words(seconds) : short.format(at);
    if (time.textContent !== text) time.textContent = text;
    const title = full.format(at);
    if (time.title !== title) time.title = title;
  }
  for (const origin of root.querySelectorAll("[data-origin]")) origin.textContent = location.origin;
}
