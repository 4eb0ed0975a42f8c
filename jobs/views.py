"""The door for agents' word on asynchronous work. Callers' doors are in `api`, which knows their keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from adrf.views import APIView
from asgiref.sync import sync_to_async
from django.http import HttpResponse
from rest_framework.request import Request

from gputorrent.redis import piped
from jobs import asynchronous as verbs
from jobs.board import Board
from jobs.dispatch import STATE
from nodes.agent_api import AgentView
from nodes.registry import Refusal, authenticate
from worker_agent.contract import Report

_decode = msgspec.msgpack.Decoder(Report).decode


class ReportView(AgentView, APIView):
    """``POST /nodes/report``: 204 when taken (or taken before), 409 when the attempt is not live."""

    async def post(self, request: Request) -> HttpResponse:
        node = await sync_to_async(authenticate)(request.headers.get("Authorization", ""))
        try:
            message = _decode(request._request.body)
        except msgspec.MsgspecError as e:
            raise Refusal(422, "invalid_request", f"invalid message: {str(e)[:300]}") from None
        async with _board(request) as board:
            await verbs.report(node, message, board)
        return HttpResponse(status=204)


@asynccontextmanager
async def _board(request: Request) -> AsyncIterator[Board]:
    """Over the connection of this web process, where there is one (not in a test without a server)."""
    dispatcher = getattr(request._request, "scope", {}).get("state", {}).get(STATE)
    if dispatcher is not None:
        yield dispatcher.board
        return
    async with piped() as pipe:
        yield Board(pipe)
