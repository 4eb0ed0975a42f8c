"""Which nodes a page shows."""

from __future__ import annotations

import pytest

from dashboard.selecting import NODES_A_PAGE, View, select, view_of
from dashboard.state import Level, Shown
from tests.dashboard.made import gpu, line, node

NODES = [
    node("calm"),
    node("been", state=Shown.GONE),
    node("bad", state=Shown.SILENT, level=Level.BAD, gpus=[gpu(name="H100 NVL")]),
    node("also", models=[line(name="Qwen/Qwen3-8B")]),
    node("warm", level=Level.WARN),
]


def names(view: View) -> list[str]:
    return [card.name for card in select(NODES, view).cards]


def test_those_in_need_come_first_and_those_that_have_left_last():
    assert names(View()) == ["bad", "warm", "also", "calm", "been"]


@pytest.mark.parametrize(
    ("view", "found"),
    [
        (View(q="h100"), ["bad"]),
        (View(q="QWEN"), ["also"]),
        (View(q="qwen also"), ["also"]),
        (View(q="qwen calm"), []),
        (View(show="attention"), ["bad", "warm"]),
        (View(show="gone"), ["been"]),
        (View(show="online", q="a"), ["warm", "also", "calm"]),
    ],
)
def test_what_is_looked_for(view, found):
    assert names(view) == found


def test_a_thousand_come_in_pages_and_a_page_that_is_gone_is_the_last():
    many = [node(f"n{i:04}") for i in range(1000)]
    first = select(many, View())
    assert (len(first.cards), first.pages, first.matching) == (NODES_A_PAGE, 21, 1000)
    last = select(many, View(page=9999))
    assert (last.page, last.cards[-1].name) == (21, "n0999")


@pytest.mark.parametrize("query", ["", "page=x", "page=0", "show=everything", f"q={'x' * 101}", "other=1"])
def test_an_address_that_makes_no_sense_asks_for_everything(query):
    assert view_of(query) == View()


def test_an_address_may_ask():
    assert view_of("q=lab+a&show=online&page=2") == View("lab a", "online", 2)
