"use strict";
// Copies a new secret; and a reload leads to the row instead of asking for another one.

document.addEventListener("DOMContentLoaded", () => {
  const card = document.querySelector("[data-back]");
  const said = card.querySelector("[role=status]");
  history.replaceState(null, "", card.dataset.back);

  async function copy(field) {
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
    } catch {
      // Without HTTPS a browser offers no clipboard; the old way works from a click.
      return document.execCommand("copy");
    }
    return true;
  }

  for (const button of card.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const done = await copy(document.getElementById(button.dataset.copy));
      said.textContent = done ? "Copied." : "Your browser does not allow it: copy the marked text by hand.";
    });
  }
});
