"""Between the names a caller knows and those of a foreign server: the model's, and the answer's id. Pure.

Only used for `--engine-url`; what our own engines say passes byte for byte.
"""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from worker_agent.contract import RESPONSES

_PREFIXES = {"/v1/chat/completions": "chatcmpl-", "/v1/completions": "cmpl-", RESPONSES: "resp_"}


class Renaming:
    """For one request: `name` is what the caller calls the model, `served` what the server calls it."""

    def __init__(self, name: str, served: str, job: str, path: str) -> None:
        self._name, self._served = name, served
        prefix = _PREFIXES.get(path, "")
        self._id = prefix + job if prefix else ""

    def request(self, body: bytes) -> bytes:
        """The body with the server's name of the model; unchanged if it is not a JSON object."""
        return self._changed(body, {"model": self._served})

    def answer(self, body: bytes) -> bytes:
        """A whole answer (or error) with the caller's name of the model, and the job's id."""
        return self._changed(body, self._ours)

    def events(self, events: bytes) -> bytes:
        """Whole server-sent events, ending in an empty line."""
        return b"".join(self._event(event) + b"\n\n" for event in events.split(b"\n\n")[:-1])

    def _event(self, event: bytes) -> bytes:
        lines = event.split(b"\n")
        return b"\n".join(
            b"data: " + self._renamed(line[5:].strip()) if line.startswith(b"data:") else line
            for line in lines
        )

    def _renamed(self, data: bytes) -> bytes:
        """What one event carries: part of an answer, or (`/v1/responses`) an answer inside."""
        if b'"response"' in data:
            with contextlib.suppress(msgspec.MsgspecError):
                found: Any = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
                if "response" in found:
                    found["response"] = msgspec.Raw(self._changed(bytes(found["response"]), self._ours))
                    return msgspec.json.encode(found)
        return self._changed(data, self._ours)

    @property
    def _ours(self) -> dict[str, str]:
        return {"id": self._id, "model": self._name} if self._id else {"model": self._name}

    @staticmethod
    def _changed(body: bytes, fields: dict[str, str]) -> bytes:
        try:
            # Only the first level is taken apart: everything else stays as it was written.
            found: Any = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        except msgspec.MsgspecError:
            return body
        new = {key: msgspec.Raw(msgspec.json.encode(value)) for key, value in fields.items() if key in found}
        return msgspec.json.encode({**found, **new}) if new else body
