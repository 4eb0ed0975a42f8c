// Buttons that copy what is in an element: data-copy names it. And what is shown once is not asked for again: a
// reload leads to the page that data-back names.

for (const button of document.querySelectorAll("[data-copy]")) {
  const label = button.textContent;
  button.setAttribute("aria-live", "polite");
  button.addEventListener("click", async () => {
    const done = await copy(document.getElementById(button.dataset.copy));
    button.textContent = done ? "Copied" : "Selected: press Ctrl + C";
    setTimeout(() => { button.textContent = label; }, 2500);
  });
}

const shownOnce = document.querySelector("[data-back]");
if (shownOnce) history.replaceState(null, "", shownOnce.dataset.back);

/** Browsers give pages the clipboard over HTTPS and on this machine only; elsewhere the text is selected. */
async function copy(source) {
  try {
    await navigator.clipboard.writeText(source.value ?? source.textContent);
    return true;
  } catch {
    if (source.select) source.select();
    else window.getSelection().selectAllChildren(source);
    return document.execCommand("copy");
  }
}
