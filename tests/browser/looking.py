"""Looks at a page as various people do: in light and dark, on a phone, with what axe-core knows."""

from __future__ import annotations

from collections.abc import Iterator

from playwright.sync_api import BrowserContext, Page

from tests.browser import environment
from tests.browser.chromium import DESKTOP, PHONE

EXCEPT: dict[str, str] = {}
"""Rules of axe-core that some page may break: the rule, and why."""
COLOURS = ("color-contrast", "link-in-text-block")
SHOWN = ("button-name", "label", "link-name", "scrollable-region-focusable", "select-name")
"""Rules about what a narrow screen may show and a wide one may not."""
_RUN = """async rules => {
  const options = {resultTypes: ['violations']};
  if (rules.length) options.runOnly = {type: 'rule', values: rules};
  const found = await axe.run(document, options);
  return found.violations.map(v => ({
    id: v.id, impact: v.impact, nodes: v.nodes.map(n => n.html.slice(0, 160)).slice(0, 4)}));
}"""
_OVERFLOW = """() => {
  const wide = document.documentElement.scrollWidth;
  if (wide <= innerWidth) return [];
  const beyond = e => e.getBoundingClientRect().right > innerWidth + 1;
  const out = [...document.querySelectorAll('body *')].filter(beyond);
  return [`${wide} px wide`, ...out.slice(0, 3).map(e => e.outerHTML.slice(0, 160))];
}"""


def prepare(context: BrowserContext) -> None:
    """axe-core in every page of it, whatever the pages' policy for scripts says."""
    context.add_init_script(path=environment.AXE)


def violations(page: Page, *rules: str) -> list[str]:
    """What axe-core finds, by these rules or by all."""
    found = page.evaluate(_RUN, list(rules))
    return [f"{v['id']} ({v['impact']}): {v['nodes']}" for v in found if v["id"] not in EXCEPT]


def dark(page: Page, wanted: bool) -> None:
    """The other colours, as the admin's switch for them sets them."""
    page.evaluate("dark => document.documentElement.classList.toggle('dark', dark)", wanted)


def settled(page: Page) -> None:
    """Until it is loaded, and what its scripts put off until then is done."""
    page.wait_for_load_state()
    page.evaluate("() => new Promise(done => setTimeout(done))")


def every_way(page: Page) -> Iterator[str]:
    """What is wrong with the page that is open, and in which of its looks."""
    settled(page)
    page.set_viewport_size(DESKTOP)
    dark(page, False)
    yield from (f"light: {what}" for what in violations(page))
    dark(page, True)
    yield from (f"dark: {what}" for what in violations(page, *COLOURS))
    page.set_viewport_size(PHONE)
    yield from (f"phone, dark: {what}" for what in violations(page, *COLOURS, *SHOWN))
    overflow = page.evaluate(_OVERFLOW)
    if overflow:
        yield f"phone: wider than the screen: {overflow}"
