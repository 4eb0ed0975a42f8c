"""Decoded JSON into types, and what msgspec says of a value as a refusal that names the parameter."""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar

import msgspec

from api.errors import ApiError, invalid

T = TypeVar("T")

AT: Final = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")
"""Where in the body it is, at the end of what msgspec says."""
_MISSING: Final = re.compile(r"Object missing required field `([^`]+)`")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `([^`]+)`")


def converted(given: Any, kind: type[T], at: str = "") -> T:
    """What was decoded, by its type. Raises `ApiError` 400 naming the parameter; `at` says where in the body
    `given` stands, if it is not the whole."""
    try:
        return msgspec.convert(given, kind, str_keys=True)
    except msgspec.ValidationError as e:
        raise _refused(str(e), at) from None


def _refused(message: str, at: str) -> ApiError:
    where = AT.search(message)
    param = _joined(at, where[1].replace("[...]", "") if where else "")
    said = AT.sub("", message)
    if missing := _MISSING.match(said):
        param = _joined(param, missing[1])
        return invalid(
            f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param
        )
    if unknown := _UNKNOWN.match(said):
        param = _joined(param, unknown[1][:80])
        return invalid(f"Unknown parameter: '{param}'.", code="unknown_parameter", param=param)
    return invalid(f"Invalid value for '{param}': {said}.", param=param or None)


def _joined(at: str, param: str) -> str:
    return f"{at}.{param}" if at and param else at or param
