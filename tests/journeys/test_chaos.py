"""The short form of `make chaos`: each kind of fault once, under load, and everything comes right."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.run import SHORT, run


def test_whatever_breaks_every_job_ends_once_and_nothing_is_left(tmp_path: Path):
    good, text = run(SHORT, tmp_path, lambda line: print(line, flush=True))
    print(text)
    assert good, text
