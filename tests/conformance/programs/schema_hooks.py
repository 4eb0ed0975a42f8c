"""What schemathesis cannot know about a cluster: who may ask, and which models, nodes and jobs there are.

Loaded by schemathesis in its own environment (SCHEMATHESIS_HOOKS). Every other case gets real names in place
of invented ones, so that it comes further than to 404; the rest stays as it was made up.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import schemathesis

KEY, NODE_SECRET = os.environ["CLUSTER_KEY"], os.environ["CLUSTER_NODE_SECRET"]
MODEL, NODE = os.environ["CLUSTER_MODEL"], os.environ["CLUSTER_NODE"]
INCARNATION = int(os.environ["CLUSTER_INCARNATION"])
VERBS = itertools.cycle(("drain", "resume", "approve"))
MODEL_VERBS = itertools.cycle(("load", "unload", "pin", "unpin"))
turns = itertools.count()


@schemathesis.serializer("application/msgpack")
def as_it_is(context: Any, value: Any) -> bytes:
    """What is no JSON was never going to be a message: let its bytes be seen."""
    return repr(value).encode("utf-8", "surrogatepass")


@schemathesis.hook
def before_call(context: Any, case: Any, **kwargs: Any) -> None:
    path = case.operation.path
    case.headers = {**(case.headers or {})}
    if path != "/register":
        case.headers["Authorization"] = f"Bearer {NODE_SECRET if path.startswith('/nodes/') else KEY}"
    if next(turns) % 2:
        return
    if isinstance(case.body, dict):
        if isinstance(case.body.get("model"), str):
            case.body = {**case.body, "model": MODEL}
        if isinstance(case.body.get("incarnation"), int):
            case.body = {**case.body, "incarnation": INCARNATION}
    named = dict(case.path_parameters or {})
    if "node" in named:
        named["node"] = NODE
        named["verb"] = next(MODEL_VERBS if "models" in path else VERBS)
    if "model" in named:
        named["model"] = MODEL
    case.path_parameters = named
