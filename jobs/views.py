"""The door for agents' word on asynchronous work. Callers' doors are in `api`, which knows their keys."""

from __future__ import annotations

import msgspec
from adrf.views import APIView
from asgiref.sync import sync_to_async
from django.http import HttpResponse
from rest_framework.request import Request

from gputorrent.redis import Pipe, asynchronous
from jobs import asynchronous as verbs
from jobs.board import Board
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
        client = asynchronous()
        try:
            await verbs.report(node, message, Board(Pipe(client)))
        finally:
            await client.aclose()
        return HttpResponse(status=204)
