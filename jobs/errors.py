"""The errors a job may end with.

JobError
+-- NoSuchModel        nobody here offers the model
+-- NoWorkers          somebody did, but no live node does now
+-- ModelUnavailable   it fits on no node, or cannot be loaded
+-- ModelLoading       it was not loaded in time
+-- HeldOff            the request has brought down several engines
+-- QueueFull          too many wait already
+-- QueueTimeout       waited too long
+-- FirstTokenTimeout  placed, but no answer began in time
+-- UpstreamFailed     every attempt failed, or the answer broke off
+-- BrokerUnavailable  Redis is away
+-- Cancelled          somebody asked for its end
+-- KeyRevoked         its key was revoked, or has expired
"""

from __future__ import annotations

from jobs.lifecycle import Move


class JobError(Exception):
    """A job ended without an answer. `code` is stable, the message is for people and holds no prompt."""

    code = "internal_error"
    move = Move.FAIL
    retry_after: float | None = None
    job = ""  # the job that ended, where there was one

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        if retry_after is not None:
            self.retry_after = retry_after


class NoSuchModel(JobError):
    code = "model_not_found"


class NoWorkers(JobError):
    code = "no_workers"
    retry_after = 10.0


class ModelUnavailable(JobError):
    code = "model_unavailable"


class ModelLoading(JobError):
    code = "model_loading"
    move = Move.EXPIRE
    retry_after = 30.0


class HeldOff(JobError):
    code = "request_held_off"


class QueueFull(JobError):
    code = "queue_full"
    retry_after = 5.0


class QueueTimeout(JobError):
    code = "queue_timeout"
    move = Move.EXPIRE
    retry_after = 5.0


class FirstTokenTimeout(JobError):
    code = "first_token_timeout"


class UpstreamFailed(JobError):
    code = "upstream_failed"


class BrokerUnavailable(JobError):
    code = "broker_unavailable"
    retry_after = 2.0


class Cancelled(JobError):
    code = "cancelled"
    move = Move.CANCEL

    def __init__(self, message: str = "the job was cancelled") -> None:
        super().__init__(message)


class KeyRevoked(JobError):
    code = "invalid_api_key"
    move = Move.CANCEL

    def __init__(self, message: str = "The API key was revoked, or has expired.") -> None:
        super().__init__(message)


_OF_RECORDS_ALONE = (
    "all_tried",
    "coordinator_lost",
    "expired",
    "never_fits",
    "rejected_by_engine",
    "unknown_model",
)


def error_codes() -> list[str]:
    """Every code that a job's record may have."""
    found, look = set(_OF_RECORDS_ALONE), [JobError]
    while look:
        kind = look.pop()
        found.add(kind.code)
        look += kind.__subclasses__()
    return sorted(found)


class NotPermitted(Exception):
    """What a job was submitted under did not hold: it is as if it had never been submitted."""
