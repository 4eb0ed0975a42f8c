"""A dashboard without a server: the hub of one process, and pages that are open on it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.contrib.auth.models import User
from django.test import Client

from dashboard.hub import STATE, Hub
from gputorrent.asgi import application

PATIENCE = 10


class Page:
    """An open page, as far as its socket is concerned."""

    def __init__(
        self,
        hub: Hub | None,
        cookie: str = "",
        query: str = "",
        origin: str | None = "http://testserver",
        path: str = "/ws/dashboard",
        app: Any = application,
    ):
        headers = [(b"host", b"testserver"), (b"cookie", cookie.encode())]
        if origin is not None:
            headers.append((b"origin", origin.encode()))
        scope = {
            "type": "websocket",
            "path": path,
            "query_string": query.encode(),
            "headers": headers,
            "subprotocols": [],
            "state": {STATE: hub} if hub else {},
        }
        self.socket = ApplicationCommunicator(app, scope)
        self.parts: dict[str, str] = {}
        self.cards: dict[str, str] = {}
        self.order: list[str] = []

    async def open(self) -> bool:
        """Whether it was let in as far as the handshake."""
        await self.socket.send_input({"type": "websocket.connect"})
        message = await self.socket.receive_output(timeout=PATIENCE)
        return bool(message["type"] == "websocket.accept")

    async def closed(self) -> int:
        """The code that it is closed with, whatever comes before."""
        while True:
            message = await self.socket.receive_output(timeout=PATIENCE)
            if message["type"] == "websocket.close":
                return message["code"]

    async def message(self, *, seen: bool = True) -> dict[str, Any]:
        """The next message, shown."""
        message = json.loads((await self.socket.receive_output(timeout=PATIENCE))["text"])
        self.parts.update(message.get("parts", {}))
        self.cards.update(message.get("cards", {}))
        self.order = message.get("order", self.order)
        if seen:
            await self.say({"seen": True})
        return message

    async def until(self, true: Any) -> None:
        """Show messages until something holds."""
        async with asyncio.timeout(PATIENCE):
            while not true(self):
                await self.message()

    async def say(self, what: dict[str, Any]) -> None:
        await self.socket.send_input({"type": "websocket.receive", "text": json.dumps(what)})

    async def close(self) -> None:
        await self.socket.send_input({"type": "websocket.disconnect", "code": 1000})
        await self.socket.wait(PATIENCE)


@pytest.fixture
async def hub(desk) -> AsyncIterator[Hub]:
    found = Hub(desk.dispatcher)
    yield found
    await found.stop()


def session(name: str, *, staff: bool = True) -> str:
    """The cookie of a new user who has logged in."""
    user = User.objects.create(username=name, is_staff=staff, is_active=True)
    client = Client()
    client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
    return f"sessionid={client.cookies['sessionid'].value}"


@pytest.fixture
async def staff(ledger) -> str:
    """The cookie of a staff user."""
    return await sync_to_async(session)("ann")
