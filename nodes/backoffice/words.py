"""Sizes, durations and times as people read them, and columns that show them."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable
from typing import Any, Final

from django.template.loader import render_to_string
from django.utils.html import format_html
from unfold.decorators import display

NONE: Final = "-"
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def size(many: float) -> str:
    """Bytes, such as '512 B', '79.2 GiB'."""
    for unit in _UNITS:
        if abs(many) < 1024 or unit == _UNITS[-1]:
            break
        many /= 1024
    return f"{many:.0f} {unit}" if unit == "B" else f"{many:.1f} {unit}"


def share(part: float, total: float) -> str:
    """Of two sizes, such as '12.0 of 80.0 GiB'; '-' where there is nothing."""
    if not total:
        return NONE
    whole = size(total)
    return f"{part / 1024 ** _UNITS.index(whole.split()[1]):.1f} of {whole}"


def percent(ratio: float | None) -> str:
    """A ratio from 0 to 1 as '42 %'."""
    return NONE if ratio is None else f"{ratio * 100:.0f} %"


def duration(seconds: float | None) -> str:
    """Seconds, such as '850 ms', '2.35 s', '4 min 10 s', '2 h 5 min', '3 d 2 h'."""
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    first = next(n for n, (_, length) in enumerate(units) if seconds >= length)
    (large, length), (small, part) = units[first : first + 2]
    whole, rest = divmod(int(seconds), length)
    return f"{whole} {large} {rest // part} {small}" if rest // part else f"{whole} {large}"


def between(start: datetime.datetime | None, end: datetime.datetime | None) -> str:
    """How long it was from one moment to another, on one line; '-' if either is not known."""
    return (
        duration((end - start).total_seconds()).replace(" ", "\N{NO-BREAK SPACE}") if start and end else NONE
    )


def moment(at: datetime.datetime | None) -> str:
    """A time for the browser to show in its viewer's zone (`times.js`); in UTC without scripts."""
    if at is None:
        return NONE
    utc = at.astimezone(datetime.UTC) if at.tzinfo else at.replace(tzinfo=datetime.UTC)
    iso = utc.isoformat(timespec="milliseconds")
    return format_html('<time datetime="{}" data-local>{}</time>', iso, f"{utc:%Y-%m-%d %H:%M:%S} UTC")


@functools.lru_cache(maxsize=1024)
def badge(text: str, colour: str = "") -> str:
    """A state: its word, on a colour of unfold's labels (success, info, warning, danger, primary)."""
    return render_to_string("unfold/helpers/label.html", {"text": text, "type": colour}) if text else NONE


def link(address: str, text: str) -> str:
    """A link as the admin's other links look."""
    looks = "text-primary-600 underline dark:text-primary-500"
    return format_html('<a class="{}" href="{}">{}</a>', looks, address, text)


Column = Callable[[Any], Any]


def when(field: str, title: str = "") -> Column:
    """A column, or a field of a page, with a time of the row."""
    return _column(field, title, moment)


def bytes_of(field: str, title: str = "") -> Column:
    """A column, or a field of a page, with a size of the row."""
    return _column(field, title, size)


def named(field: str, title: str) -> Column:
    """A column, or a field of a page, by a better name than the model's."""
    return _column(field, title, lambda value: NONE if value is None or value == "" else f"{value}")


def measured(field: str, title: str, unit: str) -> Column:
    """A column, or a field of a page, with a figure of the row in its unit: '76 °C'; '-' if unknown."""

    def said(value: float | None) -> str:
        return NONE if value is None else f"{value:,.0f}\N{NO-BREAK SPACE}{unit}".strip()

    return _column(field, title, said)


def share_of(field: str, title: str = "") -> Column:
    """A column, or a field of a page, with a ratio of the row in percent."""
    return _column(field, title, percent)


def _column(field: str, title: str, words: Callable[[Any], str]) -> Column:
    @display(description=title or field.replace("_", " "), ordering=field)
    def column(row: Any) -> str:
        return words(getattr(row, field))

    column.__name__ = field
    return column
