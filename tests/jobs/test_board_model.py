"""The board against a small model in Python, by random sequences of everything that can happen to it."""

from __future__ import annotations

import asyncio
from typing import Any

import hypothesis.strategies as st
import redis
from hypothesis import HealthCheck, settings
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
from nodes import view
from tests.jobs.scripted import work
from worker_agent.contract import decode_work, inbox_key, lease_key

NODES, MODELS, WEBS, TENANTS = ["a" * 16, "b" * 16], ["m", "org/n"], ["w1", "w2"], ["1", "2", "3"]
PLACES = [(node, model) for node in NODES for model in MODELS]


class BoardMachine(RuleBasedStateMachine):
    """`placed` and `waiting` are what should be true; inboxes tell which waiters the board has placed."""

    @initialize()
    def start(self) -> None:
        self.wire: redis.Redis = blocking()
        self.wire.flushall()
        self.loop = asyncio.new_event_loop()
        self.client = asynchronous()
        self.board = Board(Pipe(self.client))
        self.capacity = dict.fromkeys(PLACES, 0)
        self.alive, self.webs = set(NODES), set(WEBS)
        self.placed: dict[tuple[str, int], tuple[str, str]] = {}
        self.waiting: dict[str, tuple[int, str, set[str], str]] = {}
        self.ghosts: set[str] = set()
        self.delivered: set[tuple[str, int]] = set()
        self.tried: dict[str, set[str]] = {}
        self.count = 0
        for node in NODES:
            self.wire.set(lease_key(node), "1")
        for web in WEBS:
            self.wire.set(f"gt:web:{web}", "1")
        for place in PLACES:
            self.set_capacity(place, 1)

    def run(self, step):
        return self.loop.run_until_complete(step)

    def set_capacity(self, place: tuple[str, str], slots: int) -> None:
        self.capacity[place] = slots
        self.wire.hset(view.SLOTS, "/".join(place), slots)

    def read_inboxes(self) -> None:
        """Every delivery is of something that waited or was just asked for, fits, and comes once."""
        for node in NODES:
            entries: Any = self.wire.xrange(inbox_key(node))
            if entries:
                self.wire.delete(inbox_key(node))
            for _, fields in entries:
                item = decode_work(fields[b"m"])
                ref, place = (item.job, item.attempt), (node, item.model)
                assert ref not in self.delivered, "placed twice"
                self.delivered.add(ref)
                attempt, model, tried, owner = self.waiting.pop(item.job)
                assert (attempt, model, owner) == (item.attempt, item.model, item.reply)
                assert node not in tried
                assert node in self.alive
                assert not owner or owner in self.webs
                self.placed[ref] = place
                held = sum(1 for p in self.placed.values() if p == place)
                assert held <= self.capacity[place], "more than capacity"

    def ask(self, job: str, attempt: int, model: str, owner: str, tenant: str, priority: int) -> None:
        tried = self.tried.setdefault(job, set())
        order = [node for node in NODES if node not in tried]
        self.waiting[job] = (attempt, model, set(tried), owner)
        item = work(job, attempt, model=model, reply=owner)
        answer = self.run(
            self.board.reserve(
                item, order, tenant=tenant, priority=priority, wait_seconds=3600, tried=sorted(tried)
            )
        )
        self.read_inboxes()
        if isinstance(answer, Placed):
            assert self.placed[job, attempt] == (answer.node, model)
        else:
            assert isinstance(answer, Waiting)
            assert job in self.waiting

    # -- what can happen -------------------------------------------------------------------------------

    @rule(
        model=st.sampled_from(MODELS),
        web=st.sampled_from(["", *WEBS]),
        tenant=st.sampled_from(TENANTS),
        priority=st.integers(-1, 1),
    )
    def reserve(self, model, web, tenant, priority):
        if web and web not in self.webs:
            return
        self.count += 1
        self.ask(f"j{self.count}", 1, model, web, tenant, priority)

    @precondition(lambda self: self.placed)
    @rule(data=st.data(), again=st.booleans(), tenant=st.sampled_from(TENANTS))
    def release(self, data, again, tenant):
        (job, attempt), (node, model) = data.draw(st.sampled_from(sorted(self.placed.items())))
        del self.placed[job, attempt]
        assert self.run(self.board.release(node, model, job, attempt))
        self.read_inboxes()
        assert not self.run(self.board.release(node, model, job, attempt))
        if again:  # it failed there: the next attempt goes elsewhere
            self.tried[job].add(node)
            self.ask(job, attempt + 1, model, "", tenant, 0)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data):
        job = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[job]
        assert self.run(self.board.leave(job))
        assert not self.run(self.board.leave(job))

    @rule(place=st.sampled_from(PLACES), slots=st.integers(0, 3))
    def change_capacity(self, place, slots):
        self.set_capacity(place, slots)
        self.fill()

    @rule(node=st.sampled_from(NODES))
    def lose_or_find_a_node(self, node):
        if node in self.alive:
            self.alive.remove(node)
            self.wire.delete(lease_key(node))
        else:
            self.alive.add(node)
            self.wire.set(lease_key(node), "1")
        self.fill()

    @precondition(lambda self: len(self.webs) == len(WEBS))
    @rule(web=st.sampled_from(WEBS))
    def lose_a_web_process(self, web):
        self.webs.remove(web)
        self.wire.delete(f"gt:web:{web}")
        self.ghosts |= {job for job, (_, _, _, owner) in self.waiting.items() if owner == web}
        self.waiting = {job: w for job, w in self.waiting.items() if job not in self.ghosts}

    def fill(self) -> None:
        self.run(self.board.fill(["/".join(place) for place in PLACES]))
        self.read_inboxes()

    # -- what must always hold -------------------------------------------------------------------------

    @invariant()
    def the_board_holds_what_was_placed(self):
        held = {(h.job, h.attempt): (h.node, h.model) for h in self.run(self.board.held())}
        assert held == self.placed

    @invariant()
    def nobody_both_waits_and_runs(self):
        for job in self.waiting:
            assert self.run(self.board.position(job)) is not None
        for job, _ in self.placed:
            assert job in self.waiting or self.run(self.board.position(job)) is None

    @invariant()
    def no_slot_is_free_while_somebody_could_have_it(self):
        for node, model in PLACES:
            held = sum(1 for p in self.placed.values() if p == (node, model))
            if node in self.alive and held < self.capacity[node, model]:
                able = [j for j, (_, m, tried, _) in self.waiting.items() if m == model and node not in tried]
                assert not able, f"{node}/{model} has a free slot"

    def teardown(self):
        if not hasattr(self, "loop"):
            return
        try:
            for job in [*self.waiting, *self.ghosts]:
                self.run(self.board.leave(job))
            for (job, attempt), (node, model) in self.placed.items():
                assert self.run(self.board.release(node, model, job, attempt))
            assert self.wire.keys("gt:board:*") == []
        finally:
            self.run(self.client.aclose())
            self.loop.close()


def test_the_board_agrees_with_the_model_whatever_happens(wire):
    run_state_machine_as_test(
        BoardMachine,
        settings=settings(
            max_examples=30,
            stateful_step_count=25,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
