from __future__ import annotations

import pytest

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


def test_the_hint_names_the_step_the_engine_is_at():
    assert hints.hint([]) == "starting Python"
    assert hints.hint(LOG[:1]) == "reading the model's configuration"
    assert hints.hint(LOG[:2]) == "starting its workers"
    assert hints.hint(LOG) == "loading weights, 50 %"
    assert hints.hint([*LOG, "(Worker pid=3) WARNING 11-23 12:00:03 [a.py:1] never mind"]) == hints.hint(LOG)


def test_without_a_known_step_the_hint_is_the_last_line_without_its_prefix():
    assert hints.hint(["(EngineCore pid=2) INFO 11-23 12:00:01 [a/b.py:93] Hello", ""]) == "Hello"
    assert hints.hint(["warnings.warn("]) == "starting Python"


def test_progress_is_the_last_percentage():
    assert hints.progress(LOG) == 0.5
    assert hints.progress(LOG[:2]) == 0.0


def test_the_reason_is_the_root_cause_not_the_error_about_it():
    assert hints.reason(FAILED) == "ValueError: one request alone needs 9 GiB"


def test_without_an_error_the_last_line_must_do():
    assert hints.reason(["INFO 11-23 12:00:01 [a.py:1] one", "Killed", ""]) == "Killed"
    assert hints.reason([]) == "it printed nothing"


@pytest.mark.parametrize(
    "line",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`.",
        "ValueError: Free memory on device (3.1/79.2 GiB) on startup is less than desired GPU memory",
        "ValueError: 8 GiB KV cache is needed, which is larger than the available KV cache memory (2.1 GiB).",
        "ValueError: Available memory on node 0 (1.0/24 GiB) on kv cache allocation is less than requested",
        "RuntimeError: DefaultCPUAllocator: not enough memory: you tried to allocate 100 bytes.",
    ],
)
def test_want_of_memory_is_recognised(line):
    assert hints.out_of_memory(["INFO starting", line, "RuntimeError: Engine core initialization failed."])
    assert not hints.out_of_memory(["INFO starting", "ValueError: no such architecture"])
