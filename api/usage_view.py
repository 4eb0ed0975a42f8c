"""``GET /v1/usage``: what a key has used."""

from __future__ import annotations

import datetime
import io
from collections.abc import Sequence

from adrf.views import APIView
from asgiref.sync import sync_to_async
from django.http import HttpResponse, HttpResponseBase
from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response

from api import gateway, usage
from api.authentication import Caller, require_staff
from api.errors import invalid

MOST_DAYS = 400
_USUAL_DAYS = 30


class UsageView(APIView):
    """``GET /v1/usage?start=2026-11-01&end=2026-11-30&group_by=day,model&format=csv``

    Days are those of UTC, both included; the last 30 if none is given. A key sees its own; a staff key may
    name another by its number (``key=7``), or ``key=all``, and group by ``key`` as well.
    """

    async def get(self, request: Request) -> HttpResponseBase:
        here = gateway.of(getattr(request._request, "scope", {}))
        caller = here.keys.caller(request.headers.get("Authorization", ""))
        wanted = request._request.GET
        start, end = _days(wanted.get("start", ""), wanted.get("end", ""))
        groups = _groups(wanted.get("group_by", "day,model"))
        key = _key(wanted.get("key", ""), caller)
        kind = wanted.get("format", "json")
        if kind not in {"json", "csv"}:
            raise invalid("'format' must be json or csv.", code="invalid_value", param="format")
        return await sync_to_async(_answer)(start, end, groups, key, kind)


def _answer(
    start: datetime.date, end: datetime.date, groups: Sequence[str], key: int | None, kind: str
) -> HttpResponseBase:
    rows = usage.select(start, end, key)
    sums = usage.grouped(rows, groups)
    if kind == "csv":
        text = io.StringIO()
        usage.write_csv(sums, groups, text)
        name = f"usage-{start}-{end}.csv"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return HttpResponse(text.getvalue(), content_type="text/csv; charset=utf-8", headers=headers)
    whole = {"object": "list", "start": start.isoformat(), "end": end.isoformat()}
    return Response({**whole, "group_by": list(groups), "data": sums, "total": usage.total(rows)})


def _days(start: str, end: str) -> tuple[datetime.date, datetime.date]:
    last = _day("end", end) if end else timezone.now().astimezone(datetime.UTC).date()
    try:
        first = _day("start", start) if start else last - datetime.timedelta(days=_USUAL_DAYS - 1)
    except OverflowError:
        first = last
    if first > last:
        raise invalid("'start' must not be after 'end'.", code="invalid_value", param="start")
    if (last - first).days >= MOST_DAYS:
        raise invalid(f"At most {MOST_DAYS} days at once.", code="invalid_value", param="start")
    return first, last


def _day(param: str, text: str) -> datetime.date:
    try:
        return datetime.datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise invalid(
            f"'{param}' must be a day such as 2026-11-30.", code="invalid_value", param=param
        ) from None


def _groups(text: str) -> list[str]:
    groups = list(dict.fromkeys(text.split(",")))
    if not set(groups) <= set(usage.GROUPS):
        allowed = ", ".join(usage.GROUPS)
        raise invalid(f"'group_by' takes {allowed}, or several.", code="invalid_value", param="group_by")
    return groups


def _key(text: str, caller: Caller) -> int | None:
    if not text or text == str(caller.key):
        return caller.key
    require_staff(caller)
    if text == "all":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise invalid("'key' must be the number of a key, or 'all'.", code="invalid_value", param="key")
    return int(text)
