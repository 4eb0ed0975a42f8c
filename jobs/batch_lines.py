"""The lines of a batch: what one of the input says, and what one of the output looks like. Pure.

The form is that of OpenAI's batch files. A line of the error file also has its number in the input (`line`).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

BOM: Final = b"\xef\xbb\xbf"
_MOST_ID = 512


class Line(Struct, frozen=True):
    """One request of an input file. The body is looked at when its turn comes."""

    custom_id: str
    method: str
    url: str
    body: Raw


class Problem(Struct, frozen=True):
    """Why a line cannot be used, as in a batch's `errors`; `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


_decode = msgspec.json.Decoder(Line).decode


def read(number: int, text: bytes, endpoint: str) -> Line | Problem:
    """What a line asks for."""
    try:
        line = _decode(text)
    except msgspec.ValidationError as e:
        said = str(e)[:200]
        missing = next((name for name in Line.__struct_fields__ if f"field `{name}`" in said), None)
        if missing and "missing" in said:
            return Problem("missing_required_parameter", f"Missing '{missing}'.", number, missing)
        wrong = next((name for name in Line.__struct_fields__ if f"$.{name}`" in said), None)
        return Problem("invalid_value", f"Invalid line: {said}", number, wrong)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        return Problem("invalid_json", f"The line is not valid JSON: {str(e)[:200]}", number)
    if not 0 < len(line.custom_id) <= _MOST_ID or "\0" in line.custom_id:
        return Problem(
            "invalid_value", f"'custom_id' must have 1 to {_MOST_ID} characters.", number, "custom_id"
        )
    if line.method != "POST":
        return Problem("invalid_value", "'method' must be POST.", number, "method")
    if line.url != endpoint:
        return Problem("invalid_value", f"'url' must be the batch's endpoint, {endpoint}.", number, "url")
    if not bytes(line.body).startswith(b"{"):
        return Problem("invalid_value", "'body' must be an object.", number, "body")
    return line


def answer(request_id: str, custom_id: str, status: int, body: bytes) -> bytes:
    """A line of the output file: `body` is what the engine answered, byte for byte but for white space."""
    response = {"status_code": status, "request_id": request_id, "body": _on_one_line(body)}
    return _line(request_id, custom_id, response, None)


def refusal(request_id: str, custom_id: str, number: int, status: int, body: Any) -> bytes:
    """A line of the error file: `body` is an error in OpenAI's shape."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return _line(request_id, custom_id, response, None, line=number)


def never_done(request_id: str, custom_id: str | None, number: int, code: str, message: str) -> bytes:
    """A line of the error file for a request that came to no answer at all."""
    error = {"code": code, "message": message, "line": number}
    return _line(request_id, custom_id, None, error, line=number)


def _line(request_id: str, custom_id: str | None, response: Any, error: Any, **more: Any) -> bytes:
    whole = {"id": f"batch_req_{request_id}", "custom_id": custom_id, "response": response, "error": error}
    return msgspec.json.encode({**whole, **more}) + b"\n"


def _on_one_line(body: bytes) -> Any:
    try:
        body.decode()  # what is only formatted was not looked at as text
        return Raw(msgspec.json.format(body, indent=-1))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return body.decode("utf-8", "replace")
