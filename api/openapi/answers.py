"""What the doors answer, as types. For the schema alone: tests compare real answers with it.

Times are seconds since the epoch, sizes bytes, ratios between 0 and 1, unless a name says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from jobs.models import JobState
from worker_agent.contract import ModelState

State = Literal["pending", "running", "completed", "failed", "cancelled", "expired"]
assert set(State.__args__) == set(JobState.values)  # type: ignore[attr-defined]  # Literal takes no variables


class ErrorDetail(Struct):
    message: str
    type: str
    param: str | None
    code: Annotated[str | None, Meta(description="Stable; what a program should look at.")]


class Error(Struct):
    """Every refusal of the API, in OpenAI's shape."""

    error: ErrorDetail


class TokenUsage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionAnswer(Struct):
    """The engine's answer, byte for byte; vLLM may add fields of its own."""

    id: str
    object: str
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: TokenUsage | UnsetType | None = UNSET


class ResponseUsage(Struct):
    input_tokens: int
    output_tokens: int
    total_tokens: int


class ResponseAnswer(Struct):
    """The engine's answer, byte for byte; vLLM adds fields of its own."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "cancelled"]
    model: str
    output: list[dict[str, Any]]
    usage: ResponseUsage | None = None


class EmbeddingUsage(Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingVector(Struct):
    object: Literal["embedding"]
    index: int
    embedding: Annotated[
        list[float] | str, Meta(description="In base64: of little-endian 32-bit floats, one after the other.")
    ]


class EmbeddingAnswer(Struct):
    """The engine's answer, byte for byte; vLLM adds fields of its own."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingVector]
    usage: EmbeddingUsage


class Tokenized(Struct):
    count: int
    max_model_len: Annotated[int, Meta(description="Tokens of context.")]
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(Struct):
    prompt: str


class ModelCard(Struct):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: Annotated[int | None, Meta(description="Tokens of context.")]
    nodes: Annotated[int, Meta(description="Live nodes that have it ready.")]


class ModelList(Struct):
    object: Literal["list"]
    data: list[ModelCard]


class JobAccepted(Struct):
    id: str
    object: Literal["job"]
    status: State
    model: str


class JobError(Struct):
    code: str
    message: str


class AttemptRecord(Struct):
    number: int
    node: str | None
    outcome: str | None
    reason: str | None
    claimed: float | None
    placed: float | None
    finished: float | None


class JobRecord(Struct):
    """One job with its attempts. `result` is there for asynchronous jobs only."""

    id: str
    object: Literal["job"]
    status: State
    model: str
    url: str
    stream: bool
    asynchronous: bool
    created: float
    placed: float | None
    first_token: float | None
    finished: float | None
    why: Annotated[str | None, Meta(description="Why this node.")]
    attempts: list[AttemptRecord]
    usage: TokenUsage | None
    error: JobError | None
    result: dict[str, Any] | UnsetType | None = UNSET


class JobList(Struct):
    """Newest first; the next page is the one `after` the `last_id`."""

    object: Literal["list"]
    data: list[JobRecord]
    first_id: str | None
    last_id: str | None
    has_more: bool


class UsageList(Struct):
    object: Literal["list"]
    data: list[dict[str, Any]]


class HostRecord(Struct):
    hostname: str
    os: str
    arch: str
    cpu: str
    cpu_count: int
    cpu_usage: float
    ram_total: int
    ram_free: int
    disk_free: int


class GpuRecord(Struct):
    index: int
    uuid: str
    name: str
    vram_total: int
    vram_free: int
    driver: str
    utilisation: float | None
    temperature_c: float | None
    power_w: float | None


class LoadedModel(Struct):
    name: str
    state: ModelState
    reason: str | None
    progress: float
    engine: str
    slots: int
    max_model_len: int | None
    need: int | None
    need_measured: bool
    idle_seconds: float
    retry_seconds: float | None
    fits: bool
    pinned: bool
    running: int
    waiting: int
    kv_cache_usage: float
    tokens_per_s: float
    ttft_ms: float


class Worker(Struct):
    id: str
    object: Literal["worker"]
    name: str
    state: str
    state_reason: str
    last_heartbeat: float | None
    agent_version: str
    incarnation: int
    labels: dict[str, Any]
    in_flight: int
    memory_budget: int
    memory_used: int
    host: HostRecord
    gpus: list[GpuRecord]
    models: list[LoadedModel]


class WorkerList(Struct):
    object: Literal["list"]
    data: list[Worker]


class Steered(Struct):
    id: str
    name: str
    state: str
    changed: bool


class Asked(Struct):
    id: str
    name: str
    model: str
    asked: str


class Rates(Struct):
    """Over the last minute, all web processes together. Quantiles are estimated from buckets."""

    seconds: float
    requests_per_s: float
    errors_per_s: float
    prompt_tokens_per_s: float
    completion_tokens_per_s: float
    ttft_p50_s: float | None
    ttft_p95_s: float | None


class ClusterModel(Struct):
    id: str
    nodes_ready: int
    nodes: int
    slots: int
    in_flight: int
    waiting: int
    rates: Rates


class Cluster(Struct):
    object: Literal["cluster"]
    models: list[ClusterModel]
    waiting: int
    rates: Rates
    nodes: dict[str, int]
    jobs: dict[str, int]
    last_5_minutes: dict[str, float]
    heals: dict[str, int] | UnsetType = UNSET
    breakers: list[dict[str, Any]] | UnsetType = UNSET


class Health(Struct):
    status: Literal["ok"]


class Readiness(Struct):
    """`ok`, or what is wrong, for each part."""

    status: Literal["ok", "unavailable"]
    redis: str
    database: str
