// Buttons that copy the text of an element: data-copy names it.

export function wireCopyButtons(root) {
  for (const button of root.querySelectorAll("[data-copy]")) {
    const label = button.textContent;
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copy);
      const done = await copy(source);
      button.textContent = done ? "Copied" : "Selected: press Ctrl + C";
      setTimeout(() => { button.textContent = label; }, 2500);
    });
  }
}

/** Browsers give pages the clipboard over HTTPS and on this machine only; elsewhere the text is selected. */
async function copy(source) {
  try {
    await navigator.clipboard.writeText(source.textContent);
    return true;
  } catch {
    const range = document.createRange();
    range.selectNodeContents(source);
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    return document.execCommand("copy");
  }
}
