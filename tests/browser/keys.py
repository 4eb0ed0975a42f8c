"""The way through pages by the keyboard alone."""

from __future__ import annotations

from playwright.sync_api import Page

_FOCUSED = """() => {
  const e = document.activeElement, style = getComputedStyle(e);
  const icon = '.material-symbols-outlined', copy = e.cloneNode(true);
  if (copy.querySelectorAll) copy.querySelectorAll(icon).forEach(i => i.remove());
  const text = e.matches(icon) ? '' : copy.textContent.trim().replace(/\\s+/g, ' ');
  const seen = style.outlineStyle !== 'none' || style.boxShadow !== 'none';
  return [e.getAttribute('aria-label') || text || e.id, seen && e.checkVisibility()];
}"""


def tab_to(page: Page, name: str, most: int = 80) -> None:
    """Press Tab until what is called `name` (or has that id) has the focus, and shows it."""
    passed: list[str] = []
    for _ in range(most):
        page.keyboard.press("Tab")
        found, seen = page.evaluate(_FOCUSED)
        passed.append(found[:40])
        if found == name:
            assert seen, f"nobody sees that {name} has the focus"
            return
    raise AssertionError(f"{name} is not reached by Tab, but {passed}")


def follow(page: Page, name: str, leads_to: str) -> None:
    """Tab to the link and press Enter."""
    tab_to(page, name)
    page.keyboard.press("Enter")
    page.wait_for_url(leads_to)
