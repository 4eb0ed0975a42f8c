"""Jobs that nobody waits for, from submission to report, step by step."""

from __future__ import annotations

import pytest

from jobs import asynchronous as verbs
from jobs import spreading
from jobs.models import Attempt, Job, JobState
from jobs.scoring import Candidate
from nodes import view
from nodes.models import Node
from nodes.registry import Refusal
from tests.jobs.deferred import a_node, failed, inbox, on_board, queued, report, route, submit
from tests.jobs.scripted import done
from tests.nodes.agents import model
from worker_agent.contract import Load, ModelState, Outcome, control_key, decode_control, lease_key

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def node(wire) -> Node:
    return a_node(wire)


# -- the way through -----------------------------------------------------------------------------------


def test_from_submission_to_result(wire, node):
    job = submit(key=7)
    assert Job.objects.get().state == JobState.PENDING
    assert queued(wire) == 1
    assert route(job) == f"placed on {node.pk}"
    (item,) = inbox(wire, node)
    assert (item.job, item.attempt, item.reply, item.stream) == (job.id, 1, "", False)
    assert item.body == bytes(Job.objects.get().request or b"")
    report(node, item)
    assert Job.objects.get().state == JobState.RUNNING
    report(node, item, done(item, body=b'{"choices":[]}'))
    row = Job.objects.get()
    assert (row.state, bytes(row.result or b""), row.request) == (JobState.COMPLETED, b'{"choices":[]}', None)
    assert (row.prompt_tokens, row.completion_tokens, row.http_status) == (3, 7, 200)
    assert row.placed_at
    assert row.finished_at
    assert row.placed_at < row.finished_at
    assert Attempt.objects.get().outcome == "done"
    assert on_board("held") == []


def test_a_report_that_comes_twice_changes_nothing_the_second_time(wire, node):
    route(submit())
    (item,) = inbox(wire, node)
    report(node, item)
    report(node, item)
    report(node, item, done(item, body=b"1"))
    before = Job.objects.values().get()
    report(node, item, done(item, body=b"2"))
    assert Job.objects.values().get() == before


def test_a_result_may_come_before_the_word_that_it_began(wire, node):
    route(submit())
    (item,) = inbox(wire, node)
    report(node, item, done(item))
    assert Job.objects.get().state == JobState.COMPLETED


@pytest.mark.parametrize(
    "wrong", [{"lease": b"0" * 16}, {"attempt": 2}, {"job": "f" * 32}], ids=["lease", "attempt", "job"]
)
def test_a_report_for_what_is_not_live_is_refused(wire, node, wrong):
    route(submit())
    (item,) = inbox(wire, node)
    before = Job.objects.values().get()
    with pytest.raises(Refusal) as caught:
        report(node, item, done(item), **wrong)
    assert (caught.value.status, caught.value.code) == (409, "not_live")
    assert Job.objects.values().get() == before


def test_another_node_cannot_report_even_with_the_lease(wire, node):
    other = a_node(wire, "other", models=[])
    route(submit())
    (item,) = inbox(wire, node)
    report(node, item)
    with pytest.raises(Refusal):
        report(other, item, done(item))
    assert Job.objects.get().state == JobState.RUNNING


def test_a_fenced_agent_cannot_report(wire, node):
    route(submit())
    (item,) = inbox(wire, node)
    with pytest.raises(Refusal, match="newer agent"):
        report(node, item, done(item), incarnation=9)


def test_the_engines_refusal_is_the_jobs_failure(wire, node):
    route(submit())
    (item,) = inbox(wire, node)
    report(node, item, done(item, status=400, body=b'{"error":{"message":"no"}}'))
    row = Job.objects.get()
    assert (row.state, row.error_code, row.http_status) == (JobState.FAILED, "rejected_by_engine", 400)
    assert bytes(row.result or b"") == b'{"error":{"message":"no"}}'


# -- failures ------------------------------------------------------------------------------------------


def test_a_failure_goes_to_other_nodes_up_to_three_attempts(wire):
    nodes = {n.pk: n for n in (a_node(wire, name) for name in ("one", "two", "three", "four"))}
    job, seen = submit(), []
    for number in (1, 2, 3):
        route(job)
        pk, item = next((pk, items[0]) for pk, n in nodes.items() if (items := inbox(wire, n)))
        seen.append(pk)
        assert item.attempt == number
        report(nodes[pk], item)
        report(nodes[pk], item, failed(item))
    row = Job.objects.get()
    assert (row.state, row.attempt_count, row.error_code) == (JobState.FAILED, 3, "upstream_failed")
    assert len(set(seen)) == 3
    assert [a.outcome for a in row.attempts.all()] == ["engine_died"] * 3
    assert on_board("held") == []
    assert queued(wire) == 3  # its submission, and two attempts more


def test_a_failure_that_another_attempt_cannot_mend_is_final(wire, node):
    route(submit())
    (item,) = inbox(wire, node)
    report(node, item, failed(item, Outcome.TOTAL_TIMEOUT))
    assert Job.objects.get().state == JobState.FAILED


def test_when_every_node_has_failed_at_it_the_job_fails(wire, node):
    job = submit()
    route(job)
    (item,) = inbox(wire, node)
    report(node, item, failed(item))
    assert route(job) == "refused: all_tried"
    assert Job.objects.get().error_code == "all_tried"


@pytest.mark.parametrize("outcome", [Outcome.DRAINING, Outcome.ENGINE_BUSY, Outcome.MODEL_NOT_READY])
def test_what_is_no_fault_of_the_only_node_does_not_keep_the_job_from_it(wire, node, outcome):
    job = submit()
    route(job)
    (item,) = inbox(wire, node)
    report(node, item, failed(item, outcome))
    assert route(job) == f"placed on {node.pk}"
    assert [i.attempt for i in inbox(wire, node)] == [2]


def test_a_model_that_nobody_offers_fails_the_job(wire, node):
    assert route(submit(model="other")) == "refused: unknown_model"
    assert Job.objects.get().state == JobState.FAILED


@pytest.mark.parametrize("why", ["no lease", "redis was emptied", "queue full"])
def test_what_may_change_is_tried_again_later_and_costs_no_attempt(wire, node, settings, why):
    job = submit()
    if why == "no lease":
        wire.delete(lease_key(node.pk))
    elif why == "redis was emptied":
        wire.delete(view.ALIVE)
    else:
        settings.QUEUE_PER_MODEL = 0
        route(submit())
    with pytest.raises(verbs.TryAgainLater):
        route(job)
    job.refresh_from_db()
    assert (job.state, job.attempt_count, job.attempts.count()) == (JobState.PENDING, 0, 0)


def test_a_node_that_can_load_the_model_is_told_to(wire):
    node = a_node(wire, models=[model(state=ModelState.OFFERED)])
    assert route(submit()) == "waiting behind 0"
    assert [decode_control(f[b"m"]) for _, f in wire.xrange(control_key(node.pk))] == [Load("m")]


def test_routing_twice_makes_one_attempt_while_it_waits(wire, node):
    first, second = submit(), submit()
    route(first)
    assert route(second) == "waiting behind 0"
    assert route(second) == "waiting already"
    (item,) = inbox(wire, node)
    report(node, item)
    report(node, item, done(item))
    (item,) = inbox(wire, node)
    assert (item.job, item.attempt) == (second.id, 1)
    report(node, item)
    report(node, item, done(item))
    assert Job.objects.get(pk=second.id).state == JobState.COMPLETED


def test_a_job_that_has_ended_is_not_routed(wire, node):
    job = submit()
    Job.objects.update(state=JobState.CANCELLED)
    assert route(job) == "not pending"
    assert inbox(wire, node) == []


# -- where they go -------------------------------------------------------------------------------------


def test_a_long_prompt_goes_to_a_node_whose_context_holds_it(wire):
    a_node(wire, "small", models=[model(slots=9, max_model_len=2048)])
    large = a_node(wire, "large", models=[model(slots=9, max_model_len=8192)])
    body = b'{"model":"m","messages":[{"role":"user","content":"%s"}]}' % (b"word " * 4000)
    assert {route(submit(body=body)) for _ in range(4)} == {f"placed on {large.pk}"}


def test_jobs_are_spread_by_lot_in_proportion_to_the_weights(wire):
    nodes = [
        Candidate(
            node=a_node(wire, f"weighs-{w}", models=[model(slots=99)], labels={"weight": str(w)}).pk,
            state=ModelState.READY,
            takes_work=True,
            slots=99,
            in_flight=0,
            weight=float(w),
        )
        for w in (1, 3)
    ]
    for _ in range(12):
        job = submit()
        drawn = spreading.drawn(job.id, nodes)
        assert route(job) == f"placed on {min((n.node for n in nodes), key=drawn.start)}"


def test_its_faults_count_for_the_breaker_and_its_success_closes_it(wire, settings, node):
    settings.BREAKER_FAULTS = 1
    for _ in range(2):
        job = submit()
        route(job)
        (item,) = inbox(wire, node)
        report(node, item)
        report(node, item, failed(item, Outcome.ENGINE_ERROR))
        report(node, item, failed(item, Outcome.ENGINE_ERROR))  # sent twice, counted once
    (found,) = on_board("breakers")
    assert (found.node, found.state, found.faults) == (node.pk, "open", 2)
    route(submit(body=b"{}"))  # the only node is used all the same
    (item,) = inbox(wire, node)
    report(node, item, done(item))
    assert on_board("breakers") == []


def test_its_priority_is_kept_and_below_that_of_callers_who_wait(wire, node):
    route(submit())
    usual, high, low = submit(), submit(priority=50), submit(priority=-7)
    for job in (usual, high, low):
        route(job)
    assert [Job.objects.get(pk=j.pk).priority for j in (usual, high, low)] == [0, 50, -7]
    assert [on_board("position", j.id) for j in (usual, high, low)] == [0, 1, 2]
    assert {wire.hget(f"gt:board:wait:{j.id}", "priority") for j in (usual, high)} == {b"-1"}
