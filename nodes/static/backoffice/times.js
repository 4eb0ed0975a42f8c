"use strict";
// Times in the viewer's zone: every <time data-local>, whenever it appears.

(() => {
  const short = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const whole = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

  function show(root) {
    for (const time of root.querySelectorAll("time[data-local]:not([title])")) {
      const at = new Date(time.dateTime);
      if (Number.isNaN(at.getTime())) continue;
      time.textContent = short.format(at);
      time.title = whole.format(at);
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    show(document);
    document.body.addEventListener("htmx:afterSwap", () => show(document));
  });
})();
