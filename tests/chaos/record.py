"""What one client asked for, what it saw, and what was wrong with that."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

_JOB = re.compile(r"(?:chatcmpl-|cmpl-)?([0-9a-f]{12}7[0-9a-f]{19})")
"""Jobs have a UUIDv7; the id of a request that became no job is a random one (version 4)."""


class Kind(StrEnum):
    CHAT_STREAM = "chat, streamed"
    TEXT_STREAM = "text, streamed"
    CHAT = "chat, whole"
    TEXT = "text, whole"
    JOB = "asynchronous"

    @property
    def streamed(self) -> bool:
        return self in {Kind.CHAT_STREAM, Kind.TEXT_STREAM}

    @property
    def chat(self) -> bool:
        return self in {Kind.CHAT_STREAM, Kind.CHAT, Kind.JOB}


class End(StrEnum):
    COMPLETED = "completed"
    ERROR = "error"  # a refusal, an error event, or a job that ended otherwise
    LEFT = "left"  # the client went, as it had planned
    CUT = "cut"  # the connection broke
    UNREACHED = "unreached"  # there was no connection: nobody has accepted anything
    OPEN = "open"


@dataclass
class Call:
    """One request. Times are monotonic seconds; `words` is both the prompt and the right answer."""

    number: int
    kind: Kind
    words: list[str]
    port: int
    leave_after_seconds: float | None = None
    leave_after_tokens: int | None = None
    delete_after_tokens: int | None = None
    began: float = 0.0
    ended: float = 0.0
    job: str = ""
    status: int = 0
    end: End = End.OPEN
    code: str = ""
    tokens: str = ""
    deleted: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def accepted(self) -> bool:
        """The coordinator took it: its answer began. What was refused at once may have no record."""
        return self.status in {200, 202}

    @property
    def right(self) -> str:
        return " ".join(self.words)

    def take_id(self, name: str | None) -> None:
        """Note the job's id, which must stay what it was."""
        found = _JOB.fullmatch(name or "")
        if not found:
            return
        if self.job and self.job != found[1]:
            self.problems.append(f"the id changed from {self.job} to {found[1]}")
        self.job = found[1]

    def take_tokens(self, text: str) -> None:
        """Add to the answer, which must be the beginning of the right one, cut between two tokens."""
        self.tokens += text
        if not f"{self.right} ".startswith(f"{self.tokens} ") and self.tokens:
            self.problems.append(f"wrong tokens: ...{self.tokens[-60:]!r}")

    def __str__(self) -> str:
        how = f"{self.kind} port={self.port} job={self.job or '?'} tokens={len(self.words)}"
        seen = f"status={self.status} end={self.end} code={self.code or '-'} got={len(self.tokens.split())}"
        return f"call {self.number}: {how} began={self.began:.1f} ended={self.ended:.1f} {seen}"
