"""What the stand-in engine says on ``/v1/responses``: the shapes of vLLM 0.32 there. Pure."""

from __future__ import annotations

import json
import time
from typing import Any


class Unanswerable(ValueError):
    """A request that vLLM refuses (400), with the parameter."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def as_chat(body: dict[str, Any]) -> dict[str, Any]:
    """The same request as one for a chat. Raises `Unanswerable`."""
    if body.get("previous_response_id"):
        raise Unanswerable(f"Response with id '{body['previous_response_id']}' not found.", "response_id")
    for name in ("service_tier", "tools", "tool_choice"):
        if name in body and body[name] is None:
            raise Unanswerable(f"1 validation error: body.{name} is null", f"body.{name}")
    given = body["input"]
    messages = [{"role": "system", "content": body["instructions"]}] if body.get("instructions") else []
    messages += [{"role": "user", "content": given}] if isinstance(given, str) else map(_message, given)
    form = (body.get("text") or {}).get("format") or {}
    if form.get("type") == "json_schema":
        form = {"type": "json_schema", "json_schema": {"schema": form["schema"]}}
    tools = [{"function": tool} for tool in body.get("tools") or ()]
    kept: dict[str, Any] = {
        name: body[name] for name in ("model", "stream", "tool_choice", "temperature", "stop") if name in body
    }
    return {
        **kept, "messages": messages, "tools": tools, "response_format": form,
        "max_tokens": body.get("max_output_tokens"),
    }  # fmt: skip


def _message(item: dict[str, Any]) -> dict[str, Any]:
    kind = item.get("type", "message")
    if kind == "function_call":
        return {"role": "assistant", "content": None}
    if kind == "function_call_output":
        return {"role": "tool", "content": item["output"]}
    if kind == "reasoning":
        return {"role": "assistant", "content": None}
    if kind != "message":
        raise Unanswerable(f"Unsupported input item type: {kind}", "input")
    return {"role": item["role"], "content": item["content"]}


class Telling:
    """One answer, told whole or by its events. `pieces` are what it is made of, one a token."""

    def __init__(self, body: dict[str, Any], job: str) -> None:
        self.id = body.get("request_id") or f"resp_{job}"
        self.item = f"msg_{self.id[-12:]}"
        self.created = int(time.time())
        self.body = body
        self.sequence = 0
        self.text = ""

    def opening(self) -> bytes:
        response = self._response("in_progress", [], None)
        out = self._event("response.created", response=response)
        return out + self._event("response.in_progress", response=response)

    def delta(self, piece: str, tool: str | None, logprobs: list[Any]) -> bytes:
        out = b"" if self.text else self._item_added(tool)
        self.text += piece
        if tool is not None:
            kind = "response.function_call_arguments.delta"
            return out + self._event(kind, delta=piece, item_id=self.item, output_index=0)
        return out + self._at("response.output_text.delta", delta=piece, logprobs=logprobs)

    def _item_added(self, tool: str | None) -> bytes:
        if tool is not None:
            item = {**self._call(tool, ""), "status": "in_progress"}
            return self._event("response.output_item.added", item=item, output_index=0)
        item = {**self._message(""), "content": [], "status": "in_progress"}
        out = self._event("response.output_item.added", item=item, output_index=0)
        return out + self._at("response.content_part.added", part=_part("", []))

    def closing(self, tool: str | None, finish: str, usage: dict[str, int]) -> bytes:
        if tool is not None:
            kind = "response.function_call_arguments.done"
            call = {"item_id": self.item, "output_index": 0, "name": tool}
            out, item = self._event(kind, arguments=self.text, **call), self._call(tool, self.text)
        else:
            out = self._at("response.output_text.done", text=self.text, logprobs=[])
            out += self._at("response.content_part.done", part=_part(self.text))
            item = self._message(self.text)
        out += self._event("response.output_item.done", item=item, output_index=0)
        # An answer that was cut off is 'incomplete', and its event is 'completed' all the same.
        return out + self._event("response.completed", response=self._ended([item], finish, usage))

    def whole(self, text: str, tool: str | None, finish: str, usage: dict[str, int]) -> dict[str, Any]:
        item = self._message(text) if tool is None else self._call(tool, text)
        return self._ended([item], finish, usage)

    # -- parts -----------------------------------------------------------------------------------------
    def _event(self, kind: str, **fields: Any) -> bytes:
        data = json.dumps({**fields, "sequence_number": self.sequence, "type": kind}, separators=(",", ":"))
        self.sequence += 1
        return f"event: {kind}\ndata: {data}\n\n".encode()

    def _at(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, content_index=0, item_id=self.item, output_index=0, **fields)

    def _message(self, text: str) -> dict[str, Any]:
        told = {"id": self.item, "content": [_part(text)], "role": "assistant", "status": "completed"}
        return {**told, "type": "message", "phase": None}

    def _call(self, name: str, arguments: str) -> dict[str, Any]:
        call = {"name": name, "arguments": arguments, "call_id": f"call_{self.item[-8:]}"}
        return {"id": self.item, "type": "function_call", "status": "completed", "namespace": None, **call}

    def _ended(self, output: list[Any], finish: str, usage: dict[str, int]) -> dict[str, Any]:
        cut = finish == "length"
        told = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0, "tool_output_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }
        return self._response("incomplete" if cut else "completed", output, told)

    def _response(self, status: str, output: list[Any], usage: dict[str, Any] | None) -> dict[str, Any]:
        body = self.body
        tools = [{"strict": None, "parameters": None, **tool} for tool in body.get("tools") or ()]
        return {
            "id": self.id, "created_at": self.created, "object": "response", "model": body["model"],
            "status": status, "output": output, "usage": usage,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.get("instructions"), "metadata": body.get("metadata"),
            "parallel_tool_calls": body.get("parallel_tool_calls", True),
            "temperature": body.get("temperature", 1.0), "top_p": body.get("top_p", 1.0), "tools": tools,
            "tool_choice": body.get("tool_choice", "auto") if tools else "none", "background": False,
            "max_output_tokens": body.get("max_output_tokens") or 64, "max_tool_calls": None,
            "previous_response_id": None, "prompt": None, "reasoning": None, "text": body.get("text"),
            "service_tier": body.get("service_tier", "auto"), "top_logprobs": None,
            "truncation": body.get("truncation", "disabled"), "user": body.get("user"),
            "kv_transfer_params": None, "input_messages": None, "output_messages": None,
        }  # fmt: skip


def _part(text: str, logprobs: list[Any] | None = None) -> dict[str, Any]:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}
