"use strict";
// Times in the viewer's zone: every <time data-local>, whenever it appears. The server is told which zone it is,
// for times that are typed.

(() => {
  const secure = location.protocol === "https:" ? "; secure" : "";
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  document.cookie = `timezone=${zone}; path=/admin/; max-age=31536000; samesite=lax${secure}`;

  const clock = { hour: "numeric", minute: "2-digit", second: "2-digit" };
  const today = new Intl.DateTimeFormat(undefined, clock);
  const short = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", ...clock });
  const old = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  const whole = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

  function format(at, now) {
    if (at.toDateString() === now.toDateString()) return today;
    return at.getFullYear() === now.getFullYear() ? short : old;
  }

  function show(root) {
    for (const time of root.querySelectorAll("time[data-local]:not([title])")) {
      const at = new Date(time.dateTime);
      if (Number.isNaN(at.getTime())) continue;
      time.textContent = format(at, new Date()).format(at);
      time.title = whole.format(at);
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    show(document);
    document.body.addEventListener("htmx:afterSwap", () => show(document));
  });
})();
