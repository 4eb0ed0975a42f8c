"""Makes msgspec's descriptions of our message types before there are threads."""

from __future__ import annotations

import contextlib

import msgspec


def describe_all() -> None:
    """Have msgspec look through every `Struct` that is loaded by now.

    It does so when a type is first read, and the type counts as described from the beginning of that: a
    second thread that reads one meanwhile follows a null pointer (msgspec 0.22, ``json_decode_struct_map``),
    and the process is gone. Two nodes that register with a coordinator just started are enough.
    """
    waiting: list[type[msgspec.Struct]] = [msgspec.Struct]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        # What cannot be read, such as a struct that holds a function, needs no description.
        with contextlib.suppress(TypeError, NameError):
            msgspec.json.Decoder(kind)
