"""How long the admin's lists take with many rows: on SQLite, or on `DATABASE_URL`'s database.

Makes a database of its own beside the configured one (as tests do), fills it, and asks for each page as a
browser would, through Django's whole stack in this process. Ends by removing it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("GPUTORRENT_DATA_DIR", tempfile.mkdtemp(prefix="bench-admin-"))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gputorrent.settings")

PAGES = {
    "jobs": "/admin/jobs/job/",
    "jobs, page 100": "/admin/jobs/job/?p=100",
    "jobs that failed": "/admin/jobs/job/?state=failed",
    "jobs with a rare error": "/admin/jobs/job/?error_code=never_fits",
    "jobs of a model": "/admin/jobs/job/?model=org/model-3",
    "jobs of a node": "/admin/jobs/job/?node__id__exact={node}",
    "jobs of a key": "/admin/jobs/job/?key__id__exact={key}",
    "jobs of the last hour": "/admin/jobs/job/?since=1h",
    "jobs by the beginning of an id": "/admin/jobs/job/?q=019",
    "jobs by model": "/admin/jobs/job/?q=org/model-3",
    "a job": "/admin/jobs/job/{job}/change/",
    "nodes": "/admin/nodes/node/",
    "events": "/admin/nodes/nodeevent/",
    "figures": "/admin/nodes/nodesample/",
    "usage": "/admin/api/usage/",
}


def fill(many: int) -> dict[str, Any]:
    """So many jobs with an attempt each, and as many events and figures; 50 nodes, 20 keys, 10 models."""
    from django.utils import timezone

    from api.models import ApiKey, Usage
    from jobs.interactive import new_job_id
    from jobs.models import Attempt, Job, JobState
    from nodes.models import Node, NodeEvent, NodeModel, NodeSample

    nodes = [Node(id=f"{n:016x}", name=f"node-{n}", state="online") for n in range(50)]
    Node.objects.bulk_create(nodes)
    models = [f"org/model-{n}" for n in range(10)]
    NodeModel.objects.bulk_create(
        NodeModel(node=node, name=m, state="ready", slots=8) for node in nodes for m in models
    )
    keys = ApiKey.objects.bulk_create(ApiKey(name=f"team-{n}", key_hash=str(n)) for n in range(20))
    today = timezone.now().date()
    Usage.objects.bulk_create(Usage(key=k, model=m, day=today) for k in keys for m in models)
    for start in range(0, many, 5000):
        jobs = [
            _job(n, nodes, keys, models, new_job_id, Job, JobState)
            for n in range(start, min(start + 5000, many))
        ]
        Job.objects.bulk_create(jobs, batch_size=1000)
        Attempt.objects.bulk_create(
            (Attempt(job=job, number=1, node=job.node, lease="", outcome="done") for job in jobs),
            batch_size=1000,
        )
        NodeEvent.objects.bulk_create(
            (NodeEvent(node=job.node, reason="online") for job in jobs), batch_size=1000
        )
        NodeSample.objects.bulk_create((NodeSample(node=job.node) for job in jobs), batch_size=1000)
    return {"node": nodes[7].pk, "key": keys[7].pk, "job": jobs[0].pk}


def _job(n: int, nodes: Any, keys: Any, models: Any, new_id: Any, job: Any, state: Any) -> Any:
    failed = n % 50 == 0
    return job(
        id=new_id(),
        model=models[n % 10],
        node=nodes[n % 50],
        key=keys[n % 20],
        state=state.FAILED if failed else state.COMPLETED,
        error_code="never_fits" if n % 20_000 == 0 else "upstream_failed" if failed else "",
    )


def ask(names: dict[str, Any], times: int) -> None:
    from django.contrib.auth import get_user_model
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    client = Client()
    client.force_login(get_user_model().objects.create_superuser("boss", password="not used here"))
    print(f"| page | median | of this, the processor | database | slowest of {times} | queries |")
    print("|---|---|---|---|---|---|")
    for title, address in PAGES.items():
        page, took, cpu, asked_for, queries = address.format(**names), [], [], [], 0
        for _ in range(times + 1):
            begun, worked = time.perf_counter(), time.process_time()
            with CaptureQueriesContext(connection) as asked:
                answer = client.get(page)
            took.append((time.perf_counter() - begun) * 1000)
            cpu.append((time.process_time() - worked) * 1000)
            asked_for.append(sum(float(q["time"]) for q in asked) * 1000)
            queries = len(asked)
            if answer.status_code != 200:
                sys.exit(f"{page}: {answer.status_code}")
        median = [
            statistics.median(times[1:]) for times in (took, cpu, asked_for)
        ]  # the first compiles templates
        shown = " | ".join(f"{m:.0f} ms" for m in (*median, max(took[1:])))
        print(f"| {title} | {shown} | {queries} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=7)
    given = parser.parse_args()
    import django

    django.setup()
    from django.conf import settings
    from django.db import connection
    from django.test.utils import setup_test_environment, teardown_test_environment

    setup_test_environment()
    settings.MIDDLEWARE = [m for m in settings.MIDDLEWARE if "servestatic" not in m]
    name = connection.settings_dict["NAME"]
    if connection.vendor == "sqlite":
        connection.settings_dict["TEST"]["NAME"] = f"{name}.bench"
    connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
    try:
        names = fill(given.jobs)
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
        print(f"{connection.vendor}, {given.jobs:,} jobs\n")
        ask(names, given.times)
    finally:
        connection.creation.destroy_test_db(name, verbosity=0)
        teardown_test_environment()


if __name__ == "__main__":
    main()
