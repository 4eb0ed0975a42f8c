from __future__ import annotations

from worker_agent import hints

LOG = """\
(APIServer pid=1) INFO 11-23 12:00:00 [utils.py:233] non-default args: {'model': 'm'}
(EngineCore pid=2) \x1b[32mINFO\x1b[0m 11-23 12:00:01 [core.py:93] Initializing a V1 LLM engine
(EngineCore pid=2) Loading safetensors checkpoint shards:   0% Completed | 0/2 [00:00<?, ?it/s]\r\
Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01]
""".splitlines()

FAILED = """\
(EngineCore pid=2) ERROR 11-23 12:00:01 [core.py:842] Traceback (most recent call last):
(EngineCore pid=2) ERROR 11-23 12:00:01 [core.py:842]   File "core.py", line 1, in x
(EngineCore pid=2) ERROR 11-23 12:00:01 [core.py:842] ValueError: one request alone needs 9 GiB
(APIServer pid=1) Traceback (most recent call last):
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.

""".splitlines()


def test_the_hint_is_the_last_line_without_its_prefix():
    assert hints.hint(LOG[:1]) == "non-default args: {'model': 'm'}"
    assert hints.hint(LOG[:2]) == "Initializing a V1 LLM engine"
    assert hints.hint(LOG).startswith("Loading safetensors checkpoint shards:  50%")
    assert hints.hint([]) == ""


def test_progress_is_the_last_percentage():
    assert hints.progress(LOG) == 0.5
    assert hints.progress(LOG[:2]) == 0.0


def test_the_reason_is_the_root_cause_not_the_error_about_it():
    assert hints.reason(FAILED) == "ValueError: one request alone needs 9 GiB"


def test_without_an_error_the_last_line_must_do():
    assert hints.reason(["INFO 11-23 12:00:01 [a.py:1] one", "Killed", ""]) == "Killed"
    assert hints.reason([]) == "it printed nothing"
