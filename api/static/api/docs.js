"use strict";
// Starts Swagger UI, and mends what keeps people out of it. A file of its own: the page's policy allows no
// script in place.

const LEVELS = { "h3.opblock-tag": 2, ".models > h4": 2, ".opblock-body h4": 3 };
const PARTS = { ".information-container": "About", ".scheme-container": "Authorization", ".models": "Schemas" };

/** Headings that skip a level, parts without a name, a link in a button (which opens the same), texts that only a
 *  mouse can scroll. */
function mend(place) {
  const each = (selector, change) => place.querySelectorAll(selector).forEach(change);
  for (const [selector, level] of Object.entries(LEVELS)) each(selector, (h) => h.setAttribute("aria-level", level));
  for (const [selector, name] of Object.entries(PARTS)) {
    each(selector, (part) => { part.setAttribute("role", "region"); part.setAttribute("aria-label", name); });
  }
  each(".opblock-summary-control a[href]", (link) => link.removeAttribute("href"));
  each("pre.microlight", (text) => { text.tabIndex = 0; });
}

document.addEventListener("DOMContentLoaded", () => {
  const place = document.getElementById("swagger-ui");
  let asked = false;
  new MutationObserver(() => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; mend(place); });
  }).observe(place, { childList: true, subtree: true });
  SwaggerUIBundle({
    url: place.dataset.schema,
    domNode: place,
    presets: [SwaggerUIBundle.presets.apis],
    layout: "BaseLayout",
    deepLinking: true,
    validatorUrl: null,
  });
});
