"""A job whose caller waits on this web process: what has been heard of it, and how far it is."""

from __future__ import annotations

import random
import time
from typing import Final, Protocol

from msgspec import Struct, field

from gputorrent import entropy
from gputorrent.chosen import settings
from gputorrent.steps import Heard
from jobs import accounting, lifecycle, rows
from jobs.accounting import NOTHING, Spent
from jobs.lifecycle import Move
from jobs.models import TERMINAL, JobState
from jobs.outflow import Lost, Outflow
from jobs.prompt import NO_PREFIX, Prefix
from jobs.rows import AttemptRow, JobRow
from jobs.tail import Tail
from worker_agent.contract import Chunk, Done, Failed, Outcome, Reply

NODE_LOST: Final = "node_lost"
WIRE_LOST: Final = "wire_lost"
SEQUENCE_GAP: Final = "sequence_gap"
QUEUE_TIMEOUT: Final = "queue_timeout"
SLOW_CLIENT: Final = "slow_client"
UNSERVABLE: Final = "unservable"
LOAD_TIMEOUT: Final = "load_timeout"


class Leave(Protocol):
    """What the limits of a key gave for a job (`api.limits.Permit`)."""

    @property
    def pressing(self) -> bool:
        """Whether others may wait for what it gives back."""

    def over(self, job: InteractiveJob, heard: Heard) -> None:
        """Called once, when nothing more is awaited of the job, from its caller or from its node. `heard` is
        told the answer to whatever is asked then."""


def new_job_id() -> str:
    """A UUIDv7 (RFC 9562) in hex: 48 bits of milliseconds, then random bits."""
    milliseconds = time.time_ns() // 1_000_000
    rest = int.from_bytes(entropy.take()[:10], "big")
    value = (milliseconds << 80) | rest
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return f"{value:032x}"


def tenant_of(key: int | None) -> str:
    """Who shares fairly with whom."""
    return str(key or 0)


class Request(Struct, frozen=True, gc=False):
    """What a caller wants, checked: `body` is what the engine gets, byte for byte."""

    path: str
    model: str
    body: bytes
    stream: bool
    hide_usage: bool = False
    key: int | None = None  # primary key of the ApiKey
    priority: int = 0
    tokens_wanted: int = 0  # of context, at least; 0 while unknown
    prefix: Prefix = NO_PREFIX  # by which beginnings the prompt may be known again
    only: frozenset[str] | None = None  # ids of the nodes that may see it; None: all
    answer_tokens: int | None = None  # the most that the caller allows, all choices together; None: any
    metered: bool = True  # its tokens count: the model reads them, not only its tokenizer
    prompts: int = 1  # several in one request: each may be as long as the context

    @property
    def tenant(self) -> str:
        return tenant_of(self.key)

    @property
    def prompt_tokens_about(self) -> int:
        """By the rule of thumb of four bytes a token; 0 if they do not count."""
        return len(self.body) // 4 + 1 if self.metered else 0


class _Try(Struct, eq=False):
    """One attempt, for the record. Times in seconds since the epoch."""

    number: int
    lease: bytes
    claimed_at: float
    node: str = ""
    incarnation: int = 0
    placed_at: float = 0.0
    finished_at: float = 0.0
    outcome: str = ""
    reason: str = ""
    given_up: bool = False  # ended from our side: the node may still be at it
    streamed: int = 0  # server-sent events that came, about one token each
    spent: Spent = NOTHING
    recorded: bool = False  # its row is in the ledger as it stays


class InteractiveJob(Outflow, eq=False):
    """Events come in by the `on_` methods (from the mailbox and the watch), and out by `next` (see there)."""

    id: str
    request: Request
    buffer_bytes: int
    web: str = ""  # the process that answers
    state: JobState = JobState.PENDING
    version: int = 1
    created_at: float = field(default_factory=time.time)
    tries: list[_Try] = field(default_factory=list)
    why: str = ""
    first_byte_at: float = 0.0  # wall clock; 0 until something of the answer came
    finished_at: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    http_status: int | None = None
    error_code: str = ""
    error_message: str = ""
    # Monotonic times the watch looks at.
    waiting_since: float = field(default_factory=time.monotonic)
    wait_limit: float = 0.0  # seconds
    placed_since: float = 0.0
    heard_at: float = 0.0
    left_at: float = 0.0  # the caller has gone, or was sent away; only the end of the attempt is awaited
    cancel_sent: bool = False
    leaving: bool = False  # a step to take it off the board is under way
    leave_tries: int = 0
    settled: int = 0  # the attempt whose slot was given back last
    # What the mailbox looks at.
    attempt: int = 0
    lease: bytes = b""
    next_seq: int = 0
    leave: Leave | None = None
    tail: Tail | None = None  # for those who watch
    recorded: bool = False  # it and its attempts are in the ledger as they stay

    # -- attempts ------------------------------------------------------------------------------------

    def claim(self) -> None:
        """Begin the next attempt: it counts from here, whatever becomes of it. Raises what a job that was
        stopped meanwhile was stopped with."""
        if self.stopped:
            raise self.stopped
        self.attempt += 1
        self.lease = entropy.take()
        self.next_seq = 0
        self._events.clear()
        self._buffered = 0
        self.waiting_since = time.monotonic()
        self.placed_since = self.heard_at = 0.0
        self.tries.append(_Try(self.attempt, self.lease, time.time()))
        if self.state == JobState.RUNNING:
            self.move(Move.REQUEUE)

    @property
    def current(self) -> _Try:
        return self.tries[-1]

    @property
    def node(self) -> str:
        """Where the live attempt is placed; empty while it waits."""
        return self.tries[-1].node if self.tries else ""

    @property
    def spent_tokens(self) -> int:
        """Prompt and answer, of all attempts."""
        spent = 0
        for t in self.tries:
            spent += t.spent.prompt_tokens + t.spent.completion_tokens
        return spent

    @property
    def reached_a_node(self) -> bool:
        """Whether any attempt did."""
        return bool(self.node) or any(t.node for t in self.tries)

    @property
    def tried(self) -> set[str]:
        """Nodes where an attempt has failed. What the wire lost says nothing against its node, nor does work
        that came just as its model was unloaded."""
        return {t.node for t in self.tries if t.node and t.outcome not in NO_FAULT}

    @property
    def visited(self) -> set[str]:
        """Nodes to come back to only if there is no other."""
        return {t.node for t in self.tries if t.node and t.outcome != WIRE_LOST}

    def attempt_over(self, outcome: str, reason: str = "") -> None:
        """Note how the live attempt ended, once."""
        this = self.tries[-1]
        if not this.outcome:
            this.outcome, this.reason, this.finished_at = outcome, reason[:500], time.time()
            if not this.spent.total and (this.streamed or (this.placed_at and outcome in _CALLERS_WISH)):
                # The engine did not come to count.
                this.spent = Spent(self.request.prompt_tokens_about, this.streamed, estimated=True)

    # -- state ---------------------------------------------------------------------------------------

    def move(self, how: Move) -> bool:
        """Make a move of the life cycle, if it leads from here. Returns whether it was made."""
        to = lifecycle.after(self.state, how)
        if to is None:
            return False
        self.state = to
        self.version += 1
        if to in TERMINAL:
            self.finished_at = time.time()
        if self.tail is not None:
            self.tail.wake()
        return True

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL

    # -- events in -----------------------------------------------------------------------------------

    def on_placed(self, node: str, incarnation: int = 0) -> None:
        this = self.tries[-1]
        if this.node:
            return
        this.node, this.incarnation, this.placed_at = node, incarnation, time.time()
        self.placed_since = self.heard_at = time.monotonic()
        self.move(Move.PLACE)

    def on_reply(self, reply: Reply) -> None:
        if reply.__class__ is Chunk:
            self._on_chunk(reply)
            return
        self.heard_at = time.monotonic()
        this = self.tries[-1]
        if isinstance(reply, Failed):
            if not this.outcome:
                this.streamed = max(this.streamed, accounting.plausible(reply.tokens))
            self.attempt_over(reply.outcome, reply.message)
        elif isinstance(reply, Done):
            if reply.usage and not this.outcome:
                this.spent = accounting.of_usage(reply.usage)
                self.prompt_tokens = this.spent.prompt_tokens
                self.completion_tokens = this.spent.completion_tokens
            self.attempt_over("done" if reply.status < 400 else "rejected")
            if not self.first_byte_at:
                self.first_byte_at = time.time()
                if reply.first_token_ms:
                    # A whole answer comes at the end, but the node saw its first token long before.
                    self.first_byte_at -= max(0.0, reply.total_ms - reply.first_token_ms) / 1000
        if self.left_at:
            return
        if self.request.stream and isinstance(reply, Done) and self._is_watchable(reply):
            assert self.tail is not None
            self.tail.add(reply.body)
        self._put(reply)

    def _on_chunk(self, chunk: Chunk) -> None:
        """Every token of every stream comes here."""
        self.heard_at = time.monotonic()
        if not self.first_byte_at:
            self.first_byte_at = time.time()
        this, data = self.tries[-1], chunk.data
        if this.outcome:
            return  # the attempt was given up
        events = data.count(b"\n\n")
        this.streamed += events
        if self.left_at:
            return
        if not self._goes_at_once(data, events):
            self._buffered += len(data)
            if self._buffered > self.buffer_bytes:
                self.give_up(Lost(SLOW_CLIENT, "the caller reads more slowly than the model writes"))
                return
            self._put(chunk)
        if self.tail is not None:
            self.tail.add(data)

    def _is_watchable(self, done: Done) -> bool:
        return self.tail is not None and done.status < 400 and not self.current.given_up

    def on_gap(self) -> None:
        self.give_up(Lost(SEQUENCE_GAP, "part of the answer was lost on its way"))

    def give_up(self, lost: Lost) -> None:
        """End the live attempt from our side."""
        if not self.current.outcome:
            self.current.given_up = True
        self.attempt_over(lost.outcome, lost.message)
        self._put(lost)

    # -- record --------------------------------------------------------------------------------------

    def record(self) -> tuple[JobRow, list[AttemptRow]]:
        """The rows as they should now be in the ledger, but for attempts whose row is there as it stays."""
        return rows.of(self)


def pause_before_next(job: InteractiveJob, outcome: str) -> float:
    """Seconds until the next attempt, after one that ended so. Drawn by lot, so that who failed together does
    not come back together."""
    seconds = 0.0
    if outcome == Outcome.MODEL_NOT_READY:
        seconds = 2 * settings.SNAPSHOT_SECONDS  # until the snapshot knows, too
    elif outcome == Outcome.ENGINE_DIED:
        # Whatever was on that engine comes back now: not all at once, so that one request which kills engines
        # does not take the same company along to the next.
        seconds = random.uniform(0, _APART_SECONDS)  # noqa: S311 - jitter
    like = sum(1 for t in job.tries if t.outcome == outcome)
    if like > 1:
        seconds += random.uniform(0.5, 1.0) * 0.1 * 2**like  # noqa: S311 - jitter
    return seconds


_APART_SECONDS: Final = 0.2


def in_words(event: Failed | Lost) -> str:
    return event.message or str(event.outcome).replace("_", " ")


_CALLERS_WISH: Final = frozenset({Outcome.CANCELLED, SLOW_CLIENT, "done"})
"""Ends of an attempt whose work is the caller's to pay for, though nothing of an answer was seen."""

NO_FAULT: Final = frozenset({WIRE_LOST, Outcome.MODEL_NOT_READY})

RETRYABLE: Final = frozenset(
    {
        Outcome.ENGINE_UNREACHABLE,
        Outcome.ENGINE_DIED,
        Outcome.ENGINE_ERROR,
        Outcome.ENGINE_BUSY,
        Outcome.MODEL_NOT_READY,
        Outcome.DRAINING,
        NODE_LOST,
        WIRE_LOST,
    }
)
"""Outcomes after which another attempt may help, while the caller has had nothing. Time-outs are not among
them: the caller has waited that long already, what took so long here (a long prompt) would elsewhere too, and
an engine that hangs is found and killed by its agent long before, which is `ENGINE_DIED`."""
