"""One job's row under two writers and a recorder that comes late, by random sequences of moves."""

from __future__ import annotations

import copy

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as bounds
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jobs.interactive import InteractiveJob, Request, new_job_id
from jobs.lifecycle import Move, after, move, write_behind
from jobs.models import TERMINAL, Attempt, Job, JobState
from jobs.rows import AttemptRow, JobRow

WRITERS = ["one", "two"]
MOVES = st.sampled_from([None] * 6 + list(Move))
"""None: there and back between pending and running. An end would end the story too soon."""


def there_or_back(state: str) -> Move:
    return Move.PLACE if state == JobState.PENDING else Move.REQUEUE


class LifecycleMachine(RuleBasedStateMachine):
    """`memory` is the job in a web process, `late` what its recorder has yet to write, in any order and
    perhaps twice; `copies` is what each writer of the ledger has read, perhaps long ago."""

    @initialize()
    def start(self) -> None:
        Job.objects.all().delete()
        Attempt.objects.all().delete()
        request = Request("/v1/completions", "m", b"{}", stream=False)
        self.memory = InteractiveJob(new_job_id(), request, 1000)
        self.late: list[tuple[JobRow, list[AttemptRow]]] = [self.memory.record()]
        self.copies: dict[str, Job] = {}
        self.expected: tuple[str, int] | None = None
        self.ends: list[str] = []

    def row(self) -> Job | None:
        return Job.objects.filter(pk=self.memory.id).first()

    def written(self, state: str, version: int) -> None:
        """The ledger is expected to have taken a state."""
        self.expected = (state, version)
        if state in TERMINAL:
            self.ends.append(state)

    # -- the web process -------------------------------------------------------------------------------

    @rule(how=MOVES)
    def move_in_memory(self, how):
        how = how or there_or_back(self.memory.state)
        to, before = after(self.memory.state, how), self.memory.version
        assert self.memory.move(how) is (to is not None)
        assert self.memory.version == before + (to is not None)
        if to is not None:
            self.late.append(self.memory.record())

    @precondition(lambda self: self.memory.attempt < 3 and not self.memory.ended)
    @rule()
    def claim(self):
        if self.memory.tries:
            self.memory.attempt_over("engine_died")
        self.memory.claim()
        self.late.append(self.memory.record())

    @rule(data=st.data(), keep=st.booleans())
    def a_batch_is_written(self, data, keep):
        """`keep`: the recorder did not hear that it was, and writes it again."""
        if not self.late:
            return
        batch = data.draw(
            st.lists(st.sampled_from(range(len(self.late))), min_size=1, max_size=3, unique=True)
        )
        for n in batch:  # one row a statement: a batch of the recorder holds a job once
            job, attempts = copy.deepcopy(self.late[n])
            known = self.expected
            write_behind([job], attempts)
            if known is None or (known[1] < job.version and known[0] not in TERMINAL):
                self.written(job.state, job.version)
        if not keep:
            self.late = [record for n, record in enumerate(self.late) if n not in batch]

    # -- the writers of the ledger ---------------------------------------------------------------------

    @precondition(lambda self: self.expected)
    @rule(writer=st.sampled_from(WRITERS), how=MOVES, again=st.booleans())
    def move_in_the_ledger(self, writer, how, again):
        """`again`: it reads the row first; else it goes by what it has read before."""
        row = self.row()
        assert row is not None
        if again or writer not in self.copies:
            self.copies[writer] = copy.copy(row)
        job = self.copies[writer]
        how = how or there_or_back(job.state)
        fresh = (job.state, job.version, job.attempt_count) == (row.state, row.version, row.attempt_count)
        to = after(JobState(job.state), how)
        assert move(job, how, why=how) is (fresh and to is not None)
        if fresh and to is not None:
            self.written(to, row.version + 1)
            assert (job.state, job.version) == self.expected

    # -- what must always hold -------------------------------------------------------------------------

    @invariant()
    def the_row_is_what_was_written_last_and_keeps_its_end(self):
        row = self.row()
        assert (row and (row.state, row.version)) == self.expected
        assert len(self.ends) <= 1, "it ended twice"
        if self.ends:
            assert row
            assert row.state == self.ends[0]

    @invariant()
    def its_attempts_have_one_row_each(self):
        numbers = list(Attempt.objects.filter(job_id=self.memory.id).values_list("number", flat=True))
        assert len(numbers) == len(set(numbers)) <= 3


@pytest.mark.django_db
def test_a_job_ends_exactly_once_whoever_writes_and_however_late():
    run_state_machine_as_test(
        LifecycleMachine,
        settings=bounds(
            max_examples=80,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
