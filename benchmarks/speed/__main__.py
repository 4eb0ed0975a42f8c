"""``make bench``: our figures beside those of peers, and the goals. Takes about eight minutes."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict

from benchmarks.speed import figures, held, processes, table, workers
from benchmarks.speed.figures import Broken, Scenario, Seen
from benchmarks.speed.gateways import OURS, ROUTER, Target, cluster, vllm_router
from benchmarks.speed.processes import Cores
from gputorrent.environments import EnvironmentFailure

SCENARIOS = (
    *figures.SCENARIOS,
    Scenario("1,000 streams held", held.thousand, 4, ours=True),
    Scenario("5,000 streams held", held.most, 5, ours=True),
)
_WORKERS = "1 and 2 workers"


def measure(targets: list[Target], rounds: int, only: list[str], scale: float) -> dict[str, Seen]:
    """Medians over alternating rounds, by target."""
    seen: dict[str, dict[str, list[float]]] = {t.name: defaultdict(list) for t in targets}
    chosen = [s for s in SCENARIOS if not only or any(word in s.name for word in only)]
    for target in targets:
        for scenario in [s for s in chosen if not s.ours][:3]:
            scenario.run(target, 1.0)  # warm
    for number in range(rounds):
        for scenario in chosen:
            for target in targets:
                if scenario.ours and target.name != OURS:
                    continue
                found = scenario.run(target, scenario.seconds * scale)
                for name, value in found.items():
                    seen[target.name][name].append(value)
            print(f"round {number + 1} of {rounds}: {scenario.name}", file=sys.stderr, flush=True)
    return {
        target: {name: statistics.median(values) for name, values in found.items()}
        for target, found in seen.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", default=[], help="scenarios whose names have this")
    parser.add_argument("--scale", type=float, default=1.0, help="of the length of each run")
    parser.add_argument("--no-limits", action="store_true", help="a key without limits")
    parser.add_argument("--no-router", action="store_true", help="without vllm-router")
    parser.add_argument("--json", action="store_true", help="all medians as JSON")
    args = parser.parse_args()
    try:
        cores = Cores.of_this_machine()
        with cluster(cores, limits=not args.no_limits) as ours:
            idle = {OURS: ours[OURS].gateway.rss_mb()}
            serving = sum(ours[OURS].parts[name].rss_mb() for name in ("web", "redis"))
            engine = next(iter(ours.values()))
            with processes.on(cores.rest):
                if args.no_router:
                    medians = measure([*ours.values()], args.rounds, args.only, args.scale)
                else:
                    with vllm_router(cores, engine.port) as router:
                        idle[ROUTER] = router.gateway.rss_mb()
                        medians = measure([*ours.values(), router], args.rounds, args.only, args.scale)
        for name, value in idle.items():
            medians[name]["rss_idle_mb"] = medians[name]["rss_serving_mb"] = value
        medians[OURS]["rss_serving_mb"] = serving
    except (Broken, EnvironmentFailure, RuntimeError) as e:
        print(e, file=sys.stderr)
        return 1
    failed = ""
    if not args.only or any(word in _WORKERS for word in args.only):
        try:
            medians[OURS].update(workers.compare(cores, args.rounds, 4 * args.scale))
        except (Broken, RuntimeError) as e:  # what was measured before is told all the same
            failed = str(e)
    if args.json:
        print(json.dumps(medians, indent=1))
    print(table.render(medians))
    print(failed, end="", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
