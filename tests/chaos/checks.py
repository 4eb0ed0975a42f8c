"""Whether clients and ledger tell the same story, and every story has one end.

What a killed web process takes with it is excused where that was bound to happen: its connections, and the
records of its last moments (they are written behind), and nothing else. See `World.record_lost`.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.chaos.record import Call, End, Kind
from tests.chaos.world import World

LEFT_SECONDS = 5.0
"""How long a web process waits for a node to say that it has stopped what nobody waits for."""
TERMINAL = {"completed", "failed", "cancelled", "expired"}
RETRIABLE = {"failed", "expired"}


@dataclass
class Check:
    """One promise: how often it was looked at, what was excused, and what is wrong."""

    name: str
    looked_at: int = 0
    excused: int = 0
    wrong: list[str] = field(default_factory=list)

    def see(self, right: bool, what: object) -> None:
        self.looked_at += 1
        if not right:
            self.wrong.append(str(what))


def ledger(world: World) -> dict[str, dict[str, Any]]:
    """Every job's row, by its id."""
    with psycopg.connect(world.database.url, row_factory=dict_row) as connection:
        rows = connection.execute("SELECT * FROM jobs_job").fetchall()
    return {row["id"]: row for row in rows}


def attempts(world: World) -> list[dict[str, Any]]:
    """Every attempt's row, in the order of jobs and numbers."""
    with psycopg.connect(world.database.url, row_factory=dict_row) as connection:
        return connection.execute("SELECT * FROM jobs_attempt ORDER BY job_id, number").fetchall()


def clients(world: World, calls: list[Call]) -> list[Check]:
    """What each client saw, by itself."""
    answers = Check("every answer is allowed, its tokens its own, whole and in order")
    ends = Check("no connection broke but to a killed web process")
    for call in calls:
        answers.see(not call.problems, f"{call}: {'; '.join(call.problems)}")
        if call.end in {End.CUT, End.UNREACHED}:
            ends.see(world.was_down(f"web {call.port}", call.began, call.ended), f"{call}: {call.code}")
    return [answers, ends]


def agreement(world: World, calls: list[Call], rows: dict[str, dict[str, Any]]) -> list[Check]:
    """Clients and ledger, job by job; what clients have no id of, by numbers."""
    terminal = Check("every accepted job has one terminal state")
    known = Check("the ledger knows every job that a client knows")
    same = Check("a job's end in the ledger is the one its client saw")
    stored = Check("asynchronous results are right, and nothing else is stored")
    by_id = {call.job: call for call in calls if call.job}
    for row in rows.values():
        call = by_id.get(row["id"])
        terminal.see(row["state"] in TERMINAL, f"{brief(row)} {call or ''}")
        # Of what got no answer the request is kept for a day, to be asked again; of nothing else.
        may_be_retried = row["asynchronous"] and row["state"] in RETRIABLE and row["http_status"] is None
        kept = row["request"] is not None and not may_be_retried
        kept = kept or (row["result"] is not None and not row["asynchronous"])
        stored.see(not (kept and row["state"] in TERMINAL), f"it keeps its prompt or answer: {brief(row)}")
        if call and call.kind == Kind.JOB and row["result"]:
            text = json.loads(bytes(row["result"]))["choices"][0]["message"]["content"]
            stored.see(text == call.right, f"{call}: another result in the ledger")
    for call in by_id.values():
        found = rows.get(call.job)
        lost = call.kind != Kind.JOB and world.record_lost(f"web {call.port}", call.began, call.ended)
        if found is None and not call.accepted and call.end == End.ERROR:
            continue
        if found is None:
            known.looked_at += 1
            known.excused += lost
            if not lost:
                known.wrong.append(str(call))
            continue
        known.see(True, call)
        if _agree(call, found):
            same.see(True, call)
        elif lost:
            same.looked_at += 1
            same.excused += 1
        else:
            same.see(False, f"{call}; {brief(found)}")
    return [terminal, known, same, stored, numbers(calls, rows)]


def tried(
    world: World, calls: list[Call], rows: dict[str, dict[str, Any]], attempts: list[dict[str, Any]]
) -> Check:
    """An attempt at a job that is over is over, too, and there are no more of them than the job counts."""
    by_id = {call.job: call for call in calls if call.job and call.kind != Kind.JOB}
    check = Check("no attempt outlives its job, and none is beyond the third")
    for attempt in attempts:
        row = rows.get(attempt["job_id"])
        if row is None:
            check.see(False, f"attempt at the unknown job {attempt['job_id']}")
            continue
        ended = attempt["outcome"] or row["state"] not in TERMINAL
        counted = 1 <= attempt["number"] <= min(3, row["attempt_count"])
        name = f"attempt {attempt['number']} on {attempt['node_id']} {attempt['outcome'] or 'open'}"
        # A caller has left, and the web process dies before the node has said that it stopped.
        if not ended and counted and _left_and_lost(world, by_id.get(row["id"]), row):
            check.excused += 1
            ended = True
        check.see(bool(ended and counted), f"{name}: {brief(row)}")
    return check


def _agree(call: Call, row: dict[str, Any]) -> bool:
    state, code = row["state"], row["error_code"]
    if call.end == End.COMPLETED:
        return state == "completed"
    if call.end == End.ERROR:
        return state in TERMINAL - {"completed"} and code == call.code
    if call.end == End.LEFT:
        # It may have been through, or have failed, at the moment it was left.
        return state in TERMINAL
    return state in TERMINAL  # cut off by the death of a web process: by whatever came first


def numbers(calls: list[Call], rows: dict[str, dict[str, Any]]) -> Check:
    """Rows whose id no client was told: no more of each end than there are clients who were told no id."""
    check = Check("the ledger knows no job that no client asked for")
    known = {call.job for call in calls if call.job}
    unknown: Counter[str] = Counter()
    examples: dict[str, list[str]] = defaultdict(list)
    for row in rows.values():
        check.looked_at += 1
        if row["id"] not in known:
            end = row["error_code"] or row["state"]
            unknown[end] += 1
            examples[end].append(brief(row))
    nameless = [call for call in calls if not call.job]
    told = Counter(call.code for call in nameless if call.end == End.ERROR)
    vague = sum(call.end in {End.LEFT, End.CUT} for call in nameless)
    for end, count in sorted(unknown.items()):
        over = count - told[end]
        if over > 0:
            vague -= over
            if vague < 0:
                check.wrong.append(
                    f"{count} rows ended {end}, {told[end]} clients were told so: {examples[end][:3]}"
                )
    return check


def _left_and_lost(world: World, call: Call | None, row: dict[str, Any]) -> bool:
    if row["state"] != "cancelled" or row["asynchronous"]:
        return False
    if call:
        return world.record_lost(f"web {call.port}", call.began, call.ended + LEFT_SECONDS)
    # Left before it was told its id: by whichever web process.
    left = row["finished_at"].timestamp() - time.time() + time.monotonic()
    return any(world.record_lost(f"web {port}", left, left + LEFT_SECONDS) for port in world.webs)


def brief(row: dict[str, Any]) -> str:
    """One line of it."""
    kind = "asynchronous" if row["asynchronous"] else "streamed" if row["stream"] else "whole"
    placed, finished = row["placed_at"], row["finished_at"]
    times = f"created={row['created_at'].time()} placed={placed and placed.time()}"
    times += f" finished={finished and finished.time()}"
    return (
        f"row {row['id']} {kind} {row['state']} {row['error_code']} attempts={row['attempt_count']}"
        f" node={row['node_id']} {times}"
    )


def degenerate(calls: list[Call], jobs: int, faults: int, faults_wanted: int) -> list[Check]:
    """Whether there was enough of everything for the other checks to mean something."""
    enough = Check("the run was as long as it was to be")
    accepted = sum(call.accepted for call in calls)
    enough.see(accepted >= jobs, f"{accepted} jobs were accepted, of {jobs}")
    enough.see(faults >= faults_wanted, f"{faults} faults, of {faults_wanted}")
    work = Check("most work was done all the same")
    for kind in Kind:
        stayed = [c for c in calls if c.kind == kind and c.accepted and c.end != End.LEFT and not c.deleted]
        done = sum(call.end == End.COMPLETED for call in stayed)
        work.see(2 * done >= len(stayed), f"{kind}: {done} of {len(stayed)} completed")
    return [enough, work]
