"""``python -m tests.chaos``: breaks a real cluster under load for minutes, and says whether all came right.

    make chaos ARGS="--seed 7"

Exits with 1 when something is wrong, and leaves the logs of every process. The seed decides what is broken
in which order and what clients do; when things happen depends on the machine, so no two runs are the same.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.run import Plan, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--jobs", type=int, help="accepted at least (2000)")
    parser.add_argument("--faults", type=int, help="at least (36: each kind three times)")
    parser.add_argument("--seconds", type=float, help="of load at most (900)")
    parser.add_argument("--seed", type=int, help="default: a new one, printed")
    parser.add_argument("--short", action="store_true", help="250 jobs, each kind of fault once")
    parser.add_argument("--keep", action="store_true", help="keep the logs of a good run, too")
    args = parser.parse_args()
    jobs, faults, seconds = (250, 12, 120.0) if args.short else (2000, 36, 900.0)
    seed = random.SystemRandom().randrange(1_000_000) if args.seed is None else args.seed
    plan = Plan(
        args.jobs or jobs, faults if args.faults is None else args.faults, args.seconds or seconds, seed
    )
    folder = Path(tempfile.mkdtemp(prefix="gputorrent-chaos-"))
    good = False
    try:
        good, text = run(plan, folder, lambda line: print(line, flush=True))
        print(f"\n{text}", flush=True)
    finally:
        if good and not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"logs: {folder}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
