"""What `/ws/jobs/{id}` says of a job, message by message, wherever the job is: answered by this web process,
by another one, by none (an asynchronous job), or ended.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

import msgspec
import redis

from api import records
from api.errors import ApiError
from api.gateway import Gateway
from api.jobs import find
from api.records import Reader
from gputorrent import ledger
from jobs import tail
from jobs.models import TERMINAL, Job, JobState
from jobs.tail import Standing, Tail

_QUEUE_SECONDS: Final = 2.0
"""How often a job that waits is asked for its place in the queue."""

_encode = msgspec.json.Encoder().encode


class JobEvents:
    """The messages for one who watches a job and has its chunks up to number `after`.

    Every message has `seq`: the number of the chunk that it is, or of the last one before it.
    """

    def __init__(self, gateway: Gateway, reader: Reader, after: int) -> None:
        self._here, self._reader, self._seq = gateway, reader, after
        self._told: dict[str, Any] = {}

    async def of(self, job: str) -> AsyncGenerator[bytes, None]:
        """To the job's end. `job` is its id, or that of its answer.

        Raises `ApiError` 404 for a job that this reader may not know of, `DatabaseError` when the ledger has
        to be asked and is away.
        """
        job_id = records.plain_id(job)
        kept = self._here.dispatcher.tails.get(job_id) if job_id else None
        if job_id and kept is not None and (self._reader.staff or kept.key == self._reader.key):
            parts = self._followed(job_id, kept)
        else:
            parts = self._anywhere(await find(self._here, job, self._reader))
        async with aclosing(parts):
            async for message in parts:
                yield message

    # -- where the job is ------------------------------------------------------------------------------

    async def _anywhere(self, job: Job) -> AsyncGenerator[bytes, None]:
        relayed = bool(job.web) and not job.asynchronous and job.web != self._here.dispatcher.mailbox.web
        # A stream that has ended is still kept for a moment by the process that answered it.
        fresh = job.stream and not records.ended_before(job, self._here.dispatcher.tails.seconds)
        seen_ended = job.state in TERMINAL
        while True:
            if relayed and (fresh or not seen_ended):
                async with aclosing(self._relayed(job)) as parts:
                    async for message in parts:
                        yield message
                if "end" in self._told:
                    return
            if seen_ended:
                break
            seen = await self._here.lookout.next(job.pk)
            if seen is None:
                raise ApiError("job_not_found", "No such job.")
            seen_ended = seen.ended
            if not seen_ended and (state := await self._state(job.pk, seen.state, seen.node)):
                yield state
        async for message in self._ended(job.pk):
            yield message

    async def _relayed(self, job: Job) -> AsyncGenerator[bytes, None]:
        try:
            async with (
                self._here.replicas.of(job.pk, job.web) as copy,
                aclosing(self._followed(job.pk, copy)) as parts,
            ):
                async for message in parts:
                    yield message
        except redis.RedisError:
            return  # the ledger knows how it ends

    async def _followed(self, job_id: str, kept: Tail) -> AsyncGenerator[bytes, None]:
        """To the end, or until the tail is lost."""
        reader = tail.Reader(kept, self._seq)
        while not kept.lost:
            seen, standing = kept.version, kept.standing
            ended = standing is not None and standing.ended
            if standing is not None and not ended:
                message = await self._state(job_id, standing.state, self._name_of(standing.node))
                if message:
                    yield message
                if kept.version != seen:
                    continue  # it may have got a node meanwhile, which is told before its chunks
            while True:
                batch = reader.take()
                self._seq = reader.seq
                if batch.jumped:
                    yield self._message("gap", seq=batch.before)
                for seq, chunk in enumerate(batch.chunks, batch.before + 1):
                    yield self._chunk(seq, chunk)
                if reader.at_end:
                    break
            if standing is not None and ended:
                yield self._end(**_end_of(standing))
                return
            waits = standing is not None and standing.state == JobState.PENDING
            await kept.changed(seen, _QUEUE_SECONDS if waits else None)

    async def _ended(self, job_id: str) -> AsyncGenerator[bytes, None]:
        """From the ledger."""
        job = await ledger.ask(records.find, job_id, self._reader)
        if job is None:
            raise ApiError("job_not_found", "No such job.")
        record = await ledger.ask(records.whole, job, self._reader)
        if job.stream and job.first_token_at:
            yield self._message("gap", seq=self._seq)  # what came after it is not kept any more
        kept = {name: record[name] for name in ("result", "result_dropped") if name in record}
        yield self._end(state=record["state"], error=record["error"], usage=record["usage"], **kept)

    # -- messages --------------------------------------------------------------------------------------

    async def _state(self, job_id: str, state: str, node: str) -> bytes | None:
        """The message of a state, if it is news."""
        now: dict[str, Any] = {"state": state, "node": node or None}
        if state == JobState.PENDING:
            now["node"] = None
            now["queue"] = await records.queue_of(job_id, state, self._here.dispatcher.board)
        if now == self._told:
            return None
        self._told = now
        return self._message("state", seq=self._seq, **now)

    def _chunk(self, seq: int, chunk: bytes) -> bytes:
        try:
            msgspec.json.decode(chunk, type=msgspec.Raw)
            return b'{"seq":%d,"event":"chunk","data":%b}' % (seq, chunk)
        except msgspec.MsgspecError:  # an engine's own idea of an event
            return self._message("chunk", seq=seq, data=chunk.decode("utf-8", "replace"))

    def _end(self, **fields: Any) -> bytes:
        self._told = {"end": True}
        return self._message("end", seq=self._seq, **fields)

    @staticmethod
    def _message(event: str, *, seq: int, **fields: Any) -> bytes:
        return _encode({"seq": seq, "event": event, **fields})

    def _name_of(self, node: str) -> str:
        view = self._here.dispatcher.outlook.snapshot.nodes.get(node)
        return view.name if view else node


def _end_of(standing: Standing) -> dict[str, Any]:
    used = standing.prompt_tokens + standing.completion_tokens
    usage = None
    if used or standing.state == JobState.COMPLETED:
        usage = {
            "prompt_tokens": standing.prompt_tokens,
            "completion_tokens": standing.completion_tokens,
            "total_tokens": used,
        }
    error = {"code": standing.error_code, "message": standing.error_message} if standing.error_code else None
    return {"state": standing.state, "error": error, "usage": usage}
