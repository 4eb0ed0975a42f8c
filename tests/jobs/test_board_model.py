"""The board against a small model in Python, by random sequences of everything that can happen to it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
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

from gputorrent.redis import Pipe, asynchronous, blocking
from jobs.board import Board, Placed, Waiting
from jobs.breaker import State, Verdict
from nodes import view
from tests.jobs.scripted import work
from worker_agent.contract import decode_work, inbox_key, lease_key

NODES, MODELS, WEBS, TENANTS = ["a" * 16, "b" * 16], ["m", "org/n"], ["w1", "w2"], ["1", "2"]
PLACES = [(node, model) for node in NODES for model in MODELS]
FAULTS = 0  # the first one opens the breaker

Place = tuple[str, str]
Ref = tuple[str, int]


@dataclass
class Waiter:
    attempt: int
    model: str
    owner: str
    tenant: str
    priority: int
    tried: frozenset[str]
    start: int


@dataclass
class Shut:
    """A breaker that is not closed."""

    opening: int = 1
    over: bool = False
    probe: Ref | None = None


@dataclass
class Turns:
    """Virtual times of one model's queue, while there is one."""

    clocks: dict[int, int] = field(default_factory=dict)  # by priority
    finishes: dict[tuple[int, str], int] = field(default_factory=dict)  # by priority and tenant


class Model:
    """What the board should do, with plain lists and loops."""

    def __init__(self) -> None:
        self.capacity = dict.fromkeys(PLACES, 2)
        self.alive, self.webs = set(NODES), set(WEBS)
        self.placed: dict[Ref, Place] = {}
        self.marks: dict[Ref, int] = {}  # the opening an attempt was placed in
        self.waiting: dict[str, Waiter] = {}
        self.turns: dict[str, Turns] = {}
        self.faults: dict[Place, int] = {}
        self.breakers: dict[Place, Shut] = {}

    def queue(self, model: str) -> list[str]:
        mine = [(-w.priority, w.start, job) for job, w in self.waiting.items() if w.model == model]
        return [job for _, _, job in sorted(mine)]

    def free(self, place: Place) -> int:
        return self.capacity[place] - sum(1 for p in self.placed.values() if p == place)

    def gate(self, place: Place) -> str:
        b = self.breakers.get(place)
        if b is None:
            return "free"
        return "probe" if b.over and b.probe not in self.placed else "shut"

    def barred(self, place: Place, tried: frozenset[str]) -> bool:
        """Whether a shut place is passed over: another would do for this job."""
        others = [
            (node, model)
            for node, model in PLACES
            if model == place[1] and node in self.alive - tried and self.capacity[node, model] > 0
        ]
        return self.gate(place) == "shut" and any(other not in self.breakers for other in others)

    def put(self, ref: Ref, place: Place) -> None:
        if b := self.breakers.get(place):
            self.marks[ref] = b.opening
            if self.gate(place) == "probe":
                b.probe = ref
        self.placed[ref] = place

    def forget(self, job: str, *, left: bool) -> None:
        w = self.waiting.pop(job)
        turns, mine = self.turns[w.model], (w.priority, w.tenant)
        if left and all(other.tenant != w.tenant for other in self.waiting.values()):
            turns.finishes[mine] = min(turns.finishes[mine], turns.clocks.get(w.priority, 0) + 1)
        if not self.queue(w.model):
            del self.turns[w.model]

    def reserve(self, job: str, w: Waiter) -> None:
        ref = (job, w.attempt)
        able = [
            (node, w.model)
            for node in NODES
            if node in self.alive - w.tried and self.free((node, w.model)) > 0
        ]
        open_to = [place for place in able if self.gate(place) != "shut"]
        forced = [place for place in able if not self.barred(place, w.tried)]
        if open_to or forced:
            self.put(ref, (open_to or forced)[0])
            return
        turns, mine = self.turns.setdefault(w.model, Turns()), (w.priority, w.tenant)
        w.start = max(turns.clocks.get(w.priority, 0), turns.finishes.get(mine, 0))
        turns.finishes[mine] = w.start + 1
        self.waiting[job] = w

    def fill(self, place: Place) -> None:
        if place[0] not in self.alive:
            return
        for job in self.queue(place[1]):
            if self.free(place) <= 0:
                return
            w = self.waiting[job]
            if w.owner and w.owner not in self.webs:
                self.forget(job, left=True)
            elif place[0] not in w.tried and not self.barred(place, w.tried):
                self.put((job, w.attempt), place)
                clocks = self.turns[w.model].clocks
                clocks[w.priority] = max(clocks.get(w.priority, 0), w.start)
                self.forget(job, left=False)

    def release(self, ref: Ref, verdict: Verdict) -> None:
        place, mark = self.placed.pop(ref), self.marks.pop(ref, None)
        b = self.breakers.get(place)
        if verdict == Verdict.OK and b and b.opening == mark:
            del self.breakers[place]
        elif verdict == Verdict.FAULT and b and b.opening == mark and b.over:
            self.breakers[place] = Shut(b.opening + 1)
        elif verdict == Verdict.FAULT and b is None:
            self.faults[place] = self.faults.get(place, 0) + 1
            if self.faults[place] > FAULTS:
                del self.faults[place]
                self.breakers[place] = Shut()
        self.fill(place)


class BoardMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.wire: Any = blocking()
        self.wire.flushall()
        self.loop = asyncio.new_event_loop()
        self.client = asynchronous()
        self.board = Board(Pipe(self.client))
        self.model = Model()
        self.delivered: set[Ref] = set()
        self.tried: dict[str, frozenset[str]] = {}
        self.count = 0
        for node in NODES:
            self.wire.set(lease_key(node), "1")
        for web in WEBS:
            self.wire.set(f"gt:web:{web}", "1")
        for place in PLACES:
            self.wire.hset(view.SLOTS, "/".join(place), 2)

    def run(self, step):
        return self.loop.run_until_complete(step)

    def read_inboxes(self) -> None:
        """Every delivery comes once, to a live node with a slot where it has not failed."""
        for node in NODES:
            entries: Any = self.wire.xrange(inbox_key(node))
            if entries:
                self.wire.delete(inbox_key(node))
            for _, fields in entries:
                item = decode_work(fields[b"m"])
                ref, place = (item.job, item.attempt), (node, item.model)
                assert ref not in self.delivered, "placed twice"
                self.delivered.add(ref)
                assert self.model.placed[ref] == place
                assert node not in self.tried[item.job]
                assert node in self.model.alive
                held = sum(1 for p in self.model.placed.values() if p == place)
                assert held <= self.model.capacity[place], "more than capacity"

    def ask(self, job: str, attempt: int, model: str, owner: str, tenant: str, priority: int) -> None:
        tried = self.tried.setdefault(job, frozenset())
        waiter = Waiter(attempt, model, owner, tenant, priority, tried, 0)
        self.model.reserve(job, waiter)
        for _ in range(2):  # asked again, as after an answer that was lost, nothing changes
            answer = self.run(
                self.board.reserve(
                    work(job, attempt, model=model, reply=owner),
                    [node for node in NODES if node not in tried],
                    tenant=tenant,
                    priority=priority,
                    wait_seconds=3600,
                    tried=sorted(tried),
                )
            )
            if (job, attempt) in self.model.placed:
                assert answer == Placed(self.model.placed[job, attempt][0])
            else:
                assert answer == Waiting(self.model.queue(model).index(job))
        self.read_inboxes()

    # -- what can happen -------------------------------------------------------------------------------

    @rule(
        model=st.sampled_from([MODELS[0]] * 3 + MODELS[1:]),
        web=st.sampled_from(["", *WEBS]),
        tenant=st.sampled_from(TENANTS),
        priority=st.integers(-1, 1),
        many=st.integers(1, 5),  # or slots would rarely be short
    )
    def reserve(self, model, web, tenant, priority, many):
        if web and web not in self.model.webs:
            return
        for _ in range(many):
            self.count += 1
            self.ask(f"j{self.count:03}", 1, model, web, tenant, priority)

    @precondition(lambda self: self.model.placed)
    @rule(
        data=st.data(),
        verdicts=st.lists(
            st.sampled_from([Verdict.FAULT, Verdict.OK, Verdict.NOTHING]), min_size=1, max_size=3
        ),
        again=st.sampled_from([False, False, True]),
        tenant=st.sampled_from(TENANTS),
    )
    def release(self, data, verdicts, again, tenant):
        for verdict in verdicts:
            if self.model.placed:
                self.release_one(data, verdict, again, tenant)

    def release_one(self, data, verdict, again, tenant):
        (job, attempt), (node, model) = data.draw(st.sampled_from(sorted(self.model.placed.items())))
        self.model.release((job, attempt), verdict)
        assert self.run(self.board.release(node, model, job, attempt, verdict))
        self.read_inboxes()
        assert not self.run(self.board.release(node, model, job, attempt, verdict))
        if again:  # it failed there: the next attempt goes elsewhere
            self.tried[job] |= {node}
            self.ask(job, attempt + 1, model, "", tenant, 0)

    @precondition(lambda self: self.model.waiting)
    @rule(data=st.data(), overdue=st.booleans(), everything=st.booleans())
    def leave(self, data, overdue, everything):
        first = data.draw(st.sampled_from(sorted(self.model.waiting)))
        tenant = self.model.waiting[first].tenant
        every = [job for job, w in self.model.waiting.items() if w.tenant == tenant]
        for job in every if everything else [first]:
            if overdue:
                self.wire.zadd("gt:board:waiting", {job: 1})
                assert self.run(self.board.overdue()) == [job]
            self.model.forget(job, left=True)
            assert self.run(self.board.leave(job))
            assert not self.run(self.board.leave(job))

    @rule(
        change=st.sampled_from([None] * 5 + NODES),
        place=st.sampled_from(PLACES),
        slots=st.sampled_from([2, 1, 3, 0]),
    )
    def trouble(self, change, place, slots):
        """A node dies or comes back, or capacity changes."""
        if change is None:
            self.model.capacity[place] = slots
            self.wire.hset(view.SLOTS, "/".join(place), slots)
        elif change in self.model.alive:
            self.model.alive.remove(change)
            self.wire.delete(lease_key(change))
        else:
            self.model.alive.add(change)
            self.wire.set(lease_key(change), "1")
        self.fill()

    @precondition(lambda self: len(self.model.webs) == len(WEBS))
    @rule(web=st.sampled_from(WEBS))
    def lose_a_web_process(self, web):
        self.model.webs.remove(web)
        self.wire.delete(f"gt:web:{web}")

    @precondition(lambda self: any(not b.over for b in self.model.breakers.values()))
    @rule(data=st.data(), at_once=st.booleans())
    def the_time_of_a_breaker_is_over(self, data, at_once):
        shut = sorted(place for place, b in self.model.breakers.items() if not b.over)
        place = data.draw(st.sampled_from(shut))
        self.model.breakers[place].over = True
        opening, _, *rest = self.wire.hget("gt:breakers", "/".join(place)).decode().split(" ")
        until = (int(self.wire.time()[0]) - 1) * 1000
        self.wire.hset("gt:breakers", "/".join(place), " ".join([opening, str(until), *rest]))
        if at_once:
            self.fill()

    def fill(self) -> None:
        for place in PLACES:
            self.model.fill(place)
        self.run(self.board.fill(["/".join(place) for place in PLACES]))
        self.read_inboxes()

    # -- what must always hold -------------------------------------------------------------------------

    @invariant()
    def the_board_holds_what_was_placed(self):
        held = {(h.job, h.attempt): (h.node, h.model) for h in self.run(self.board.held())}
        assert held == self.model.placed
        assert set(held) <= self.delivered

    @invariant()
    def who_waits_waits_in_order(self):
        for model in MODELS:
            queue = [job.decode() for job in self.wire.zrange(f"gt:board:queue:{model}", 0, -1)]
            assert queue == self.model.queue(model)
        assert self.run(self.board.depths([]))[0] == len(self.model.waiting)

    @invariant()
    def breakers_are_as_they_should_be(self):
        found = {(b.node, b.model): (b.opening, b.state) for b in self.run(self.board.breakers())}
        assert found == {
            place: (b.opening, State.HALF_OPEN if b.over else State.OPEN)
            for place, b in self.model.breakers.items()
        }

    @invariant()
    def no_slot_is_free_while_somebody_could_have_it(self):
        for place in PLACES:
            node, name = place
            if node in self.model.alive and self.model.free(place) > 0 and self.model.gate(place) == "free":
                able = [
                    job
                    for job, w in self.model.waiting.items()
                    if w.model == name and node not in w.tried and (not w.owner or w.owner in self.model.webs)
                ]
                assert not able, f"{place} has a free slot"

    def teardown(self):
        if not hasattr(self, "loop"):
            return
        try:
            for job in self.model.waiting:
                assert self.run(self.board.leave(job))
            for (job, attempt), (node, model) in self.model.placed.items():
                assert self.run(self.board.release(node, model, job, attempt))
            assert self.wire.keys("gt:board:*") == []
        finally:
            self.run(self.client.aclose())
            self.loop.close()


def test_the_board_agrees_with_the_model_whatever_happens(wire, settings):
    settings.BREAKER_FAULTS = FAULTS
    run_state_machine_as_test(
        BoardMachine,
        settings=bounds(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
