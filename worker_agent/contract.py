"""The wire between coordinator and agent: paths, keys, messages. `PROTOCOL.md` says the same in prose.

Only the standard library and msgspec are imported here, so that the coordinator can use this module
without having an agent's dependencies, and the agent without having Django.

Two ways lead over the wire:

* HTTP (JSON): an agent registers, beats, says goodbye and reports on asynchronous work.
* Redis Streams (MessagePack in field ``m``): `Work` and `Control` to the node, `Reply` back to the one
  web process that waits for it.

What an agent sends over HTTP refuses unknown fields (a coordinator never guesses what a node meant); what
the coordinator answers, and everything on the streams, ignores them, so either side may grow. A change
that an older peer cannot live with raises `PROTOCOL`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

PROTOCOL: Final = 1

# -- HTTP paths on the coordinator ---------------------------------------------------------------------
REGISTER: Final = "/register"
HEARTBEAT: Final = "/nodes/heartbeat"
GOODBYE: Final = "/nodes/goodbye"
REPORT: Final = "/nodes/report"

RESPONSES: Final = "/v1/responses"
"""The one path of a `Work` whose streams have typed events, and a last one instead of ``[DONE]``."""

MAX_NODE_BODY_BYTES: Final = 256 * 1024
"""The largest register, heartbeat or goodbye body the coordinator reads (a `Report` may carry a result)."""


# -- Redis keys ----------------------------------------------------------------------------------------
def inbox_key(node: str) -> str:
    """The stream a node takes `Work` from. Only the coordinator appends, only the node reads and deletes."""
    return f"gt:node:{node}:inbox"


def control_key(node: str) -> str:
    """The stream a node takes `Control` messages from. Same rights as the inbox."""
    return f"gt:node:{node}:control"


def lease_key(node: str) -> str:
    """The key a living agent sets again and again; its absence is the fast sign of a dead node."""
    return f"gt:node:{node}:lease"


def reply_key(web: str) -> str:
    """The stream of one web process. Nodes may append (never creating it), only that process reads."""
    return f"gt:reply:{web}"


FIELD: Final = b"m"
"""The one field of every stream entry: MessagePack bytes."""

REPLY_STREAM_MAXLEN: Final = 20_000
"""Entries a reply stream may hold before the oldest are trimmed (approximately). A web process that falls
this far behind sees a gap in the sequence numbers and ends the stream with an error."""

REPLY_FUNCTION: Final = "gt_reply_1"
REPLY_SOURCE: Final = f"""#!lua name=gt_replies_1
redis.register_function('{REPLY_FUNCTION}', function(keys, args)
  redis.set_repl(redis.REPL_NONE)
  return redis.call('XADD', args[1], 'NOMKSTREAM', 'MAXLEN', '~', args[2], '*', 'm', args[3])
end)
"""
"""How a node appends to a reply stream (its name, a bound, what to append) so that answers reach neither the
append-only file of Redis nor a replica. Web processes load it; where it is missing, or forbidden, nodes
append by XADD. It runs with the rights of whoever calls it. Another source is another number."""


# -- vocabulary ----------------------------------------------------------------------------------------
class ModelState(StrEnum):
    """Where a model on a node stands. Only READY takes work."""

    OFFERED = "offered"  # may be loaded, is not
    SLEEPING = "sleeping"  # loaded once, its memory given back, quick to wake
    DOWNLOADING = "downloading"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    FAILED = "failed"


class Outcome(StrEnum):
    """Why an attempt failed on the node's side. Whether that speaks against the node is the coordinator's
    decision."""

    ENGINE_UNREACHABLE = "engine_unreachable"  # nothing answered on the engine's port
    ENGINE_DIED = "engine_died"  # the connection broke, or the process ended, with work in it
    ENGINE_ERROR = "engine_error"  # a 5xx other than 503, or an answer that makes no sense
    ENGINE_BUSY = "engine_busy"  # 429 or 503: back-pressure
    MODEL_NOT_READY = "model_not_ready"  # the node does not serve that model now
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"  # noqa: S105 - a token of text, not a secret
    STALLED = "stalled"  # too long between two tokens
    TOTAL_TIMEOUT = "total_timeout"
    DRAINING = "draining"  # the agent is stopping and takes no more
    CANCELLED = "cancelled"  # asked for by the coordinator
    UNDELIVERABLE = "undeliverable"  # the broker was away so long that the node could keep no more replies


Bytes = Annotated[int, Meta(ge=0, le=1 << 60)]
Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Ratio = Annotated[float, Meta(ge=0.0, le=1.0)]
Rate = Annotated[float, Meta(ge=0.0, le=1e12)]
ShortText = Annotated[str, Meta(max_length=200)]
Text = Annotated[str, Meta(max_length=2000)]
NodeId = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$")]
ModelName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}$")]
NodeName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]

MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
NODE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


# -- HTTP: registration --------------------------------------------------------------------------------
class Gpu(Struct, frozen=True, forbid_unknown_fields=True):
    """One GPU as NVML describes it. Sizes in bytes."""

    index: Annotated[int, Meta(ge=0, le=1023)]
    uuid: ShortText
    name: ShortText
    vram_total: Bytes
    vram_free: Bytes
    driver: ShortText = ""
    compute_capability: ShortText = ""


class Host(Struct, frozen=True, forbid_unknown_fields=True):
    """The machine under the agent. Sizes in bytes."""

    hostname: ShortText
    os: ShortText
    arch: ShortText
    cpu: ShortText
    cpu_count: Annotated[int, Meta(ge=1, le=100_000)]
    ram_total: Bytes
    ram_free: Bytes
    disk_free: Bytes


class ModelReport(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A model this node offers and how it does. `slots` is how many requests it runs at once."""

    name: ModelName
    state: ModelState
    slots: Annotated[int, Meta(ge=1, le=100_000)]
    max_model_len: Count = 0  # tokens of context; 0 while unknown
    progress: Ratio = 0.0  # of a download or a load
    reason: Text = ""  # of a failure
    engine: ShortText = ""  # e.g. "vllm 0.32.0"
    running: Count = 0  # requests in the engine's batch
    waiting: Count = 0  # requests queued in the engine
    kv_cache_usage: Ratio = 0.0
    tokens_per_s: Rate = 0.0  # generated, since the last beat
    ttft_ms: Rate = 0.0  # mean time to first token since the last beat; 0 if there was none
    stream_tokens_per_s: Rate = 0.0  # decode speed of one request in the batch; 0 until enough was seen
    vram_used: Bytes = 0
    need: Bytes = 0  # memory it takes when loaded; 0 while unknown
    need_measured: bool = False  # seen after a load, not estimated before one
    fits: bool = True  # False: it can never be loaded on this node; `reason` says why
    pinned: bool = False  # never unloaded for another model
    idle_seconds: Rate = 0.0  # since it last had work
    retry_seconds: Rate = 0.0  # until a failed load is tried again; 0: not by itself
    load_seconds: Rate = 0.0  # how long its last load took


class Register(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``POST /register``. Either `token` (first time) or `node` and `secret` (a known node, restarted)."""

    protocol: int
    agent_version: ShortText
    name: NodeName
    machine: ShortText  # fingerprint of the host: tells a restart from a clone
    instance: ShortText  # random, new with every start of the agent
    host: Host
    gpus: Annotated[list[Gpu], Meta(max_length=64)]
    models: Annotated[list[ModelReport], Meta(max_length=256)]
    labels: Annotated[dict[ShortText, ShortText], Meta(max_length=64)] = {}
    token: ShortText = ""
    node: NodeId | None = None
    secret: ShortText = ""


class RedisAccess(Struct, frozen=True):
    """How this node reaches its inbox: a URL without credentials, and the node's own Redis user."""

    url: str
    username: str
    password: str


class Registered(Struct, frozen=True):
    """The answer to `Register`. `secret` is set only when it is new: the agent keeps it, nobody else can."""

    node: str
    incarnation: int
    state: str  # NodeState of the registry: "online", or "pending" until an admin approves
    redis: RedisAccess
    heartbeat_seconds: float = 10.0
    lease_refresh_seconds: float = 2.0
    lease_seconds: float = 6.0
    secret: str = ""


class Refused(Struct, frozen=True):
    """Body of every 4xx on the paths above. `code` is for programs, `message` says the remedy."""

    code: str
    message: str
    retry_after: float = 0.0


# -- HTTP: heartbeat -----------------------------------------------------------------------------------
class GpuLoad(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One GPU now. Absent fields were not reported by the driver."""

    index: Annotated[int, Meta(ge=0, le=1023)]
    vram_free: Bytes
    utilisation: Ratio | None = None
    temperature_c: Annotated[float, Meta(ge=-100, le=1000)] | None = None
    power_w: Annotated[float, Meta(ge=0, le=100_000)] | None = None


class Heartbeat(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``POST /nodes/heartbeat``, every `heartbeat_seconds`, and at once when a model changes state."""

    incarnation: Annotated[int, Meta(ge=1)]
    draining: bool
    models: Annotated[list[ModelReport], Meta(max_length=256)]
    gpus: Annotated[list[GpuLoad], Meta(max_length=64)]
    ram_free: Bytes
    disk_free: Bytes
    cpu_usage: Ratio
    attempts: Annotated[list[ShortText], Meta(max_length=100_000)]  # "job:attempt" of all work on the node
    memory_budget: Bytes = 0  # what this node's engines may take in all (VRAM; RAM without a GPU)
    memory_used: Bytes = 0  # what they take now
    draining_reason: Text = ""  # e.g. "stopping", "quiet hours until 18:00"
    redis_connected: bool = True
    redis_denied: bool = False  # Redis refuses our credentials: new ones are needed


class BeatReply(Struct, frozen=True):
    """The answer to a beat. `redis` is set when the agent should connect anew with these credentials."""

    state: str
    draining: bool = False  # what the operator wants: true once drained from the coordinator's side
    redis: RedisAccess | None = None
    pinned: list[str] = []


class Goodbye(Struct, frozen=True, forbid_unknown_fields=True):
    """``POST /nodes/goodbye``: the agent stops; nothing of it is left running."""

    incarnation: Annotated[int, Meta(ge=1)]
    reason: Text = ""


# -- Redis: coordinator -> node ------------------------------------------------------------------------
class Work(Struct, frozen=True, array_like=True, tag="work"):
    """One attempt at one job. `body` goes to the engine's `path` as it is.

    `reply` is the web process that waits; empty for asynchronous work, which is answered by `Report`.
    Limits are in seconds from the moment the agent reads the message, so clocks need not agree.
    """

    job: str
    attempt: int
    lease: bytes  # 16 random bytes; every message about this attempt carries them
    reply: str
    model: str
    path: str
    body: bytes
    stream: bool
    hide_usage: bool  # the caller did not ask for the usage chunk that `body` asks for
    first_token_seconds: float
    stall_seconds: float
    total_seconds: float


class Cancel(Struct, frozen=True, array_like=True, tag="cancel"):
    """Stop this attempt: close the engine's connection. Unknown attempts are ignored."""

    job: str
    attempt: int


class Drain(Struct, frozen=True, array_like=True, tag="drain"):
    """Finish what runs, take nothing new, until `Resume`."""


class Resume(Struct, frozen=True, array_like=True, tag="resume"):
    """Take work again."""


class Load(Struct, frozen=True, array_like=True, tag="load"):
    """Load this model as soon as it fits, unloading idle ones if need be. Does nothing if it is loaded."""

    model: str


class Unload(Struct, frozen=True, array_like=True, tag="unload"):
    """Take no new work for this model, finish what runs, then free its memory."""

    model: str


class Pin(Struct, frozen=True, array_like=True, tag="pin"):
    """Whether this model may be unloaded to make room for another."""

    model: str
    pinned: bool


Control = Cancel | Drain | Resume | Load | Unload | Pin


# -- Redis: node -> web process ------------------------------------------------------------------------
class Usage(Struct, frozen=True, array_like=True):
    """Tokens as the engine's tokenizer counted them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Chunk(Struct, frozen=True, array_like=True, tag=1):
    """Part of a stream: one or more whole server-sent events, byte for byte."""

    job: str
    attempt: int
    lease: bytes
    seq: int
    data: bytes


class Done(Struct, frozen=True, array_like=True, tag=2):
    """The engine answered to the end. For a stream `body` is its last part (with its last event), for a whole
    answer all of it. `status` is the engine's: a 4xx is the caller's mistake, not a fault of the node.
    """

    job: str
    attempt: int
    lease: bytes
    seq: int
    status: int
    body: bytes
    content_type: str
    usage: Usage | None
    first_token_ms: float  # from reading the Work to the first token; 0 if there was none
    total_ms: float


class Failed(Struct, frozen=True, array_like=True, tag=3):
    """The attempt ended without an answer. `message` is for people and holds no prompt."""

    job: str
    attempt: int
    lease: bytes
    seq: int
    outcome: Outcome
    message: str
    status: int = 0  # the engine's HTTP status, if it gave one
    retry_after: float = 0.0
    tokens: int = 0  # about so many were generated before it ended


Reply = Chunk | Done | Failed


# -- HTTP: asynchronous work ---------------------------------------------------------------------------
class Report(Struct, frozen=True, array_like=True):
    """``POST /nodes/report`` (MessagePack, ``application/msgpack``): what `Reply` is for a waiting caller.

    `reply` None says that the attempt started; otherwise it is its `Done` or `Failed`. Sent again with
    growing pauses until the coordinator answers 2xx, or 4xx for an attempt that is no longer live.
    """

    incarnation: int
    job: str
    attempt: int
    lease: bytes
    reply: Done | Failed | None = None


# -- codecs --------------------------------------------------------------------------------------------
_msgpack = msgspec.msgpack.Encoder()
_work = msgspec.msgpack.Decoder(Work)
_control = msgspec.msgpack.Decoder(Control)
_replies = msgspec.msgpack.Decoder(list[Reply])

encode = _msgpack.encode
"""Any message of the streams, or a list of replies, to bytes."""


def decode_work(data: bytes) -> Work:
    """Raises `msgspec.MsgspecError` (a ValueError) for anything but a `Work`."""
    return _work.decode(data)


def decode_control(data: bytes) -> Control:
    """Raises `msgspec.MsgspecError` for anything but a `Control` message."""
    return _control.decode(data)


def decode_replies(data: bytes) -> list[Reply]:
    """One stream entry carries a list: what gathered while the write before it was under way.

    Raises `msgspec.MsgspecError` for anything else.
    """
    return _replies.decode(data)
