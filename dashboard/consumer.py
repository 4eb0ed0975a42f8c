"""``/ws/dashboard``: the state when a page connects, then what changes.

The query may have a view of the nodes (``?q=lab&page=2``), see `dashboard.selecting`.

    page -> server   {"view": {"q": "", "show": "", "page": 1}}   what it wants to see of the nodes
                     {"seen": true}                               the last message has been shown
    server -> page   {"at": seconds, "parts": {name: html}, "cards": {node: html}, "order": [node, ...]}

The next message is made when the page has shown the last one, from what is so then: whoever is slow gets
fewer, and nothing piles up on either side. Who does not show a message in ten seconds is sent away, and comes
back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any, Final

import msgspec
from channels.consumer import get_handler_name
from channels.generic.websocket import AsyncWebsocketConsumer
from django.db import DatabaseError, InterfaceError
from msgspec import Struct

from api import staff
from dashboard.hub import STATE, Hub, Visitor
from dashboard.rendering import Rendered, changes
from dashboard.selecting import View, view_of
from gputorrent import background, ledger

log = logging.getLogger(__name__)

REFUSED: Final = 4403
TOO_SLOW: Final = 4408
NONSENSE: Final = 4400
FAILED: Final = 1011
NOT_HERE: Final = 1013  # try again later
MOST_SOCKETS: Final = 200
_MOST_CHARACTERS = 2000


class Said(Struct, frozen=True, forbid_unknown_fields=True):
    """What a page sends."""

    view: View | None = None
    seen: bool = False


_decode = msgspec.json.Decoder(Said).decode
_encode = msgspec.json.Encoder().encode


class DashboardConsumer(AsyncWebsocketConsumer):
    """One open page."""

    shown_within_seconds = 10.0
    asked_again_seconds = 30.0

    _tasks: tuple[asyncio.Task[None], ...] = ()

    async def dispatch(self, message: dict[str, Any]) -> None:
        # Channels' own goes to a thread before each message, to close database connections there: that was
        # most of what a page costs. Whatever asks the database here does so in the ledger's threads.
        await getattr(self, get_handler_name(message))(message)

    async def connect(self) -> None:
        headers = dict(self.scope["headers"])
        if b"origin" in headers and not staff.is_this_site(headers):  # what says nothing is no browser
            await self.close()
            return
        await self.accept()  # a close code reaches the page only then
        self._session_key: str | None = self.scope["session"].session_key
        if not await self._may_watch():
            await self.close(REFUSED)
            return
        hub: Hub | None = self.scope.get("state", {}).get(STATE)
        if hub is None or hub.visitors >= MOST_SOCKETS:
            await self.close(NOT_HERE)
            return
        self._hub, self._seen = hub, asyncio.Event()
        self._visitor = Visitor(view_of(self.scope["query_string"].decode("latin-1")))
        hub.join(self._visitor)
        self._tasks = tuple(
            asyncio.create_task(self._watched(task)) for task in (self._tell(), self._ask_again())
        )

    async def disconnect(self, code: int) -> None:
        if self._tasks:
            self._hub.leave(self._visitor)
            await background.end(self._tasks)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        try:
            if text_data is None or len(text_data) > _MOST_CHARACTERS:
                raise msgspec.ValidationError("too long, or no text")
            said = _decode(text_data)
        except (msgspec.MsgspecError, UnicodeError):
            await self.close(NONSENSE)
            return
        if not self._tasks:
            return
        if said.seen:
            self._seen.set()
        if said.view is not None and said.view != self._visitor.view:
            self._visitor.view = said.view
            self._hub.look_again()

    # -- what goes on by itself ----------------------------------------------------------------------

    async def _watched(self, task: Coroutine[Any, Any, int]) -> None:
        """End the page's socket with the code that a task ends with."""
        try:
            code = await task
        except Exception:  # nobody else would hear of it
            log.exception("a page's task failed")
            code = FAILED
        self._hub.leave(self._visitor)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.shown_within_seconds):  # to whom nothing can be sent
                await self.close(code)

    async def _tell(self) -> int:
        told = Rendered()
        while True:
            await self._visitor.changed.wait()
            self._visitor.changed.clear()
            now = self._visitor.latest
            self._seen.clear()
            try:
                async with asyncio.timeout(self.shown_within_seconds):
                    await self.send(text_data=_encode(changes(told, now)).decode())
                    await self._seen.wait()
            except TimeoutError:
                return TOO_SLOW
            told = now

    async def _ask_again(self) -> int:
        while True:
            await asyncio.sleep(self.asked_again_seconds)
            if not await self._may_watch():
                return REFUSED

    async def _may_watch(self) -> bool:
        """Where the ledger is away, who was let in stays; nobody new comes in."""
        try:
            return await ledger.ask(staff.of_session, self._session_key) is not None
        except (DatabaseError, InterfaceError):
            return bool(self._tasks)
