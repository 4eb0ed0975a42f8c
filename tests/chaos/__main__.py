"""``python -m tests.chaos``: breaks a real cluster under load for minutes, and says whether all came right.

    make chaos ARGS="--seed 7"

Exits with 1 when something is wrong, and leaves the logs of every process. The seed decides what is broken
in which order and what clients do; when things happen depends on the machine, so no two runs are the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.run import LONG, SHORT, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--jobs", type=int, help=f"accepted at least ({LONG.jobs})")
    parser.add_argument("--faults", type=int, help=f"at least ({LONG.faults}: each kind three times)")
    parser.add_argument("--seconds", type=float, help=f"of load at most ({LONG.seconds:.0f})")
    parser.add_argument("--seed", type=int, help="default: a new one, printed")
    parser.add_argument("--short", action="store_true", help=f"{SHORT.jobs} jobs, each kind of fault once")
    parser.add_argument("--keep", action="store_true", help="keep the logs of a good run, too")
    args = parser.parse_args()
    asked = {name: getattr(args, name) for name in ("jobs", "faults", "seconds", "seed")}
    asked = {name: value for name, value in asked.items() if value is not None}
    plan = dataclasses.replace(
        SHORT if args.short else LONG, **{"seed": random.randrange(1_000_000), **asked}
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
