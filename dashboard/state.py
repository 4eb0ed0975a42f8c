"""What the dashboard shows, as plain objects: made once for all who watch, carried by Redis, drawn by each
process for its own pages.

Times are seconds since the epoch, sizes bytes, shares whole percents: what does not change on the page does
not change here. Names of nodes, models and GPUs are others' words; nothing here is a prompt or a secret.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

import msgspec
from msgspec import Struct


class Level(IntEnum):
    """How much something wants to be looked at."""

    FINE = 0
    NOTE = 1
    WARN = 2
    BAD = 3


class Shown(StrEnum):
    """A node's state as people see it: the ledger's, and `SILENT` for one whose lease has run out before the
    ledger has given it up."""

    ONLINE = "online"
    SILENT = "silent"
    UNHEALTHY = "unhealthy"
    PENDING = "pending"
    DRAINING = "draining"
    GONE = "gone"


class GpuLine(Struct, frozen=True, array_like=True):
    index: int
    name: str
    utilisation: int | None  # percent
    used: int
    total: int
    temperature: int | None  # degrees Celsius

    @property
    def used_percent(self) -> int:
        return round(100 * self.used / self.total) if self.total else 0


class ModelLine(Struct, frozen=True, array_like=True):
    """A model on a node. `breaker` is empty, `open` or `half_open`."""

    name: str
    state: str
    progress: int  # percent
    slots: int
    in_flight: int
    reason: str
    breaker: str = ""


class NodeCard(Struct, frozen=True, array_like=True):
    id: str
    name: str
    state: Shown
    reason: str
    gpus: list[GpuLine]
    models: list[ModelLine]
    in_flight: int
    cpu: int  # percent
    memory_used: int  # by its engines
    memory_budget: int
    disk_free: int
    beat_at: float | None
    level: Level = Level.FINE


class ModelFigures(Struct, frozen=True, array_like=True):
    """A model over all nodes. Rates are those of the last minute; None: nothing to tell."""

    name: str
    nodes_ready: int
    nodes: int
    slots: int
    in_flight: int
    waiting: int
    requests_per_s: float = 0.0
    errors_per_s: float = 0.0
    tokens_per_s: float = 0.0
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None


class JobLine(Struct, frozen=True, array_like=True):
    id: str
    model: str
    key: str
    node: str
    node_name: str
    state: str
    kind: str  # stream, whole, asynchronous
    created_at: float
    tokens: int | None  # of the answer so far; None: not known here


class Event(Struct, frozen=True, array_like=True):
    """`subject` is what it happened to: its name, and `kind` and `ref` say where it is found."""

    at: float
    level: Level
    subject: str
    text: str
    kind: str = ""  # node, job, key
    ref: str = ""


class Finding(Struct, frozen=True, array_like=True):
    """Something that is not as it should be, and what to do. `page` is the name of an URL, `query` narrows
    what is shown there, `link` says what that is."""

    level: Level
    text: str
    advice: str = ""
    page: str = ""
    query: str = ""
    link: str = "Look there"


class Totals(Struct, frozen=True, array_like=True):
    """Of the last minute."""

    requests_per_s: float = 0.0
    errors_per_s: float = 0.0
    requests: int = 0
    errors: int = 0
    tokens_per_s: float = 0.0
    prompt_tokens_per_s: float = 0.0
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None


class State(Struct, frozen=True, array_like=True):
    """`models` are those in most need of being looked at; how many there are is said beside."""

    at: float
    totals: Totals
    models: list[ModelFigures]
    nodes: list[NodeCard]
    jobs: list[JobLine]
    running: int
    waiting: int
    events: list[Event]
    findings: list[Finding]
    keys: int  # that are good
    ever_asked: bool
    models_known: int = 0
    models_ready: int = 0


encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(State).decode


def decode(packed: bytes) -> State:
    """Raises `msgspec.MsgspecError` for what another version of this program wrote."""
    return _decode(packed)
