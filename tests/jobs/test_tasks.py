"""What django-rq carries: JSON on both sides, and nothing that could run other people's code."""

from __future__ import annotations

import json
import os
import pickle
import signal
import zlib

import django_rq
import pytest
from django.core.management import call_command
from rq import SimpleWorker
from rq.serializers import JSONSerializer

from jobs import asynchronous, tasks
from jobs.management.commands import jobworker
from jobs.models import Job, JobState
from nodes.models import Node, NodeState
from tests.jobs.desk import request
from tests.nodes.agents import enrol, model
from worker_agent.contract import inbox_key, lease_key

pytestmark = pytest.mark.django_db(transaction=True)


class Bomb:
    """What somebody who can write to a queue would like a worker to unpickle."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def node(wire) -> Node:
    node, _ = enrol(models=[model()])
    wire.set(lease_key(node.pk), "1")
    return node


def stored(wire, queue: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of a queue as they lie in Redis."""
    ids = wire.lrange(f"rq:queue:{queue}", 0, -1)
    return [(id_, wire.hgetall(b"rq:job:" + id_)) for id_ in ids]


def worker() -> None:
    """Serve the queues until they are empty, and give the signals back to the test runner."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    try:
        call_command("jobworker", "--burst")
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_what_lies_in_the_queue_is_json_and_holds_an_id_only(wire):
    job = asynchronous.submit(request(stream=False, body=b'{"prompt":"top secret"}'))
    ((_, fields),) = stored(wire, "routing")
    name, _, arguments, keywords = json.loads(zlib.decompress(fields[b"data"]))
    assert (name, arguments, keywords) == ("jobs.tasks.route", [job.id], {})
    everything = b"".join(wire.dump(key) for key in wire.keys("rq:*"))
    assert b"top secret" not in everything


def test_the_worker_routes_what_was_submitted(wire, node):
    job = asynchronous.submit(request(stream=False))
    worker()
    assert Job.objects.get().attempts.get().node == node
    assert wire.xlen(inbox_key(node.pk)) == 1
    assert Job.objects.get(pk=job.pk).state == JobState.RUNNING
    assert stored(wire, "routing") == []


def test_a_task_that_runs_twice_places_once(wire, node):
    job = asynchronous.submit(request(stream=False))
    worker()
    tasks.enqueue_routing(job.id, 0)
    worker()
    assert wire.xlen(inbox_key(node.pk)) == 1


def test_a_job_has_one_task_in_the_queue_however_often_it_is_queued(wire, node):
    job = asynchronous.submit(request(stream=False))
    tasks.enqueue_routing(job.id, 0)
    assert len(stored(wire, "routing")) == 1


# -- workers that die ----------------------------------------------------------------------------------


def taken_by(worker: str, job: Job, *, begun: bool) -> None:
    """A worker has taken the job's task off the queue, as RQ does it."""
    queue = tasks.queue("routing")
    task = queue.fetch_job(queue.pop_job_id() or "")
    assert task is not None
    assert task.id == f"route-{job.pk}-0"
    if begun:
        dead = SimpleWorker([queue], name=worker, connection=queue.connection, serializer=JSONSerializer)
        dead.prepare_execution(task)
        dead.prepare_job_execution(task)


@pytest.mark.parametrize("begun", [False, True])
def test_a_task_whose_worker_has_died_is_queued_again(wire, node, begun):
    job = asynchronous.submit(request(stream=False))
    taken_by("dead", job, begun=begun)
    assert stored(wire, "routing") == []
    tasks.enqueue_routing(job.id, 0)
    worker()
    assert Job.objects.get().state == JobState.RUNNING
    assert wire.xlen(inbox_key(node.pk)) == 1
    assert len(tasks.queue("routing").started_job_registry) == 0
    assert tasks.queue("routing").failed_job_registry.get_job_ids() == []


def test_a_task_whose_worker_lives_is_under_way(wire, node):
    job = asynchronous.submit(request(stream=False))
    taken_by("busy", job, begun=True)
    wire.set(tasks.worker_key("busy"), "1")
    tasks.enqueue_routing(job.id, 0)
    assert stored(wire, "routing") == []


def test_a_task_with_a_pause_comes_when_its_time_has_come(wire, node):
    job = asynchronous.submit(request(stream=False))
    wire.delete("rq:queue:routing")
    tasks.enqueue_routing(job.id, 1, delay_seconds=600)
    assert tasks.enqueue_due() == 0
    tasks.enqueue_routing(job.id, 1)  # it stands in the schedule
    assert wire.zcard("rq:scheduled:routing") == 1
    assert stored(wire, "routing") == []
    wire.zadd("rq:scheduled:routing", {f"route-{job.id}-1": 1})
    assert tasks.enqueue_due() == 1
    assert tasks.enqueue_due() == 0
    assert [id_.decode() for id_, _ in stored(wire, "routing")] == [f"route-{job.id}-1"]


def test_a_task_lost_on_its_way_out_of_the_schedule_is_queued_again(wire, node):
    job = asynchronous.submit(request(stream=False))
    wire.delete("rq:queue:routing")
    tasks.enqueue_routing(job.id, 1, delay_seconds=600)
    wire.delete("rq:scheduled:routing")
    tasks.enqueue_routing(job.id, 1)
    assert len(stored(wire, "routing")) == 1


# -- the rest ------------------------------------------------------------------------------------------


def test_staff_see_the_queues_and_their_tasks_in_the_admin(wire, client, admin_client):
    job = asynchronous.submit(request(stream=False, body=b'{"prompt":"top secret"}'))
    for page in (
        "/admin/django-rq/",
        "/admin/django-rq/queues/0/",
        f"/admin/django-rq/queues/0/route-{job.id}-0/",
    ):
        assert client.get(page).status_code == 302
        shown = admin_client.get(page)
        assert shown.status_code == 200, page
        assert b"top secret" not in shown.content
    assert b"jobs.tasks.route" in shown.content


def test_what_cannot_be_placed_now_is_left_to_the_sweep(wire, node, settings):
    wire.delete(lease_key(node.pk))
    settings.SWEEP_SECONDS = 0
    job = asynchronous.submit(request(stream=False))
    worker()
    assert Job.objects.get().state == JobState.PENDING
    wire.set(lease_key(node.pk), "1")
    tasks.sweep()
    worker()
    assert Job.objects.get(pk=job.pk).state == JobState.RUNNING


@pytest.mark.parametrize("kind", ["code", "task"])
def test_a_pickle_in_the_queue_is_not_opened(wire, tmp_path, kind):
    target = str(tmp_path / "made")
    bomb: object = Bomb(target) if kind == "code" else ("os.mkdir", None, [target], {})
    packed = pickle.dumps(bomb)
    tasks.enqueue_routing("f" * 32, 0)
    ((id_, _),) = stored(wire, "routing")
    wire.hset(b"rq:job:" + id_, "data", zlib.compress(packed))
    worker()
    assert not os.path.exists(target)
    assert stored(wire, "routing") == []
    pickle.loads(packed)
    assert os.path.exists(target) is (kind == "code")  # it was a live one


def test_a_sweep_marks_silent_nodes_and_never_piles_up(wire, node):
    Node.objects.update(last_beat_at="2000-01-01T00:00:00Z")
    wire.delete(lease_key(node.pk))
    for _ in range(20):  # by several workers' clocks
        tasks.enqueue_periodic()
        wire.delete("gt:due:sweep")
    assert sorted(django_rq.get_queue("maintenance").job_ids) == ["batches", "sample", "sweep", "tidy"]
    worker()
    assert Node.objects.get().state == NodeState.UNHEALTHY


def test_redis_away_leaves_the_job_to_the_sweep(wire):
    wire.execute_command("ACL", "SETUSER", "default", "-lpush", "-rpush", "-sadd", "-hset")
    try:
        job = asynchronous.submit(request(stream=False))
    finally:
        wire.execute_command("ACL", "SETUSER", "default", "+@all")
    assert Job.objects.get(pk=job.pk).state == JobState.PENDING
    assert stored(wire, "routing") == []


@pytest.mark.parametrize("permitted", [True, False])
def test_the_worker_lets_those_first_who_are_waited_for(monkeypatch, permitted):
    done = []

    def nice(by):
        done.append(by)
        if not permitted:
            raise PermissionError

    monkeypatch.setattr(os, "nice", nice)
    monkeypatch.setattr(jobworker.Service, "run", lambda service: done.append("run"))
    call_command("jobworker")
    assert done == [5, "run"]
