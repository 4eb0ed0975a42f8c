from __future__ import annotations

import pytest

from worker_agent import memory
from worker_agent.memory import CPU_OVERHEAD, GIB, GPU_OVERHEAD, MIB, Reserve


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 4 * GIB), ("4G", 4 * GIB), ("1.5gb", 3 * GIB // 2), ("512 MiB", 512 * MIB), ("1000", 1000)],
)
def test_sizes(text, size):
    assert memory.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1G", "4 apples", "nan", "1e3"])
def test_what_is_not_a_size(text):
    with pytest.raises(ValueError, match="not a size"):
        memory.parse_size(text)


@pytest.mark.parametrize(
    ("text", "reserve"),
    [
        ("10%", Reserve(share=0.1)),
        ("0.25", Reserve(share=0.25)),
        ("0", Reserve()),
        ("4GiB", Reserve(size=4 * GIB)),
        ("4294967296", Reserve(size=4 * GIB)),
    ],
)
def test_reserves(text, reserve):
    assert memory.parse_reserve(text) == reserve


@pytest.mark.parametrize("text", ["100%", "1", "2", "-0.1", "inf", "lots"])
def test_what_is_not_a_reserve(text):
    with pytest.raises(ValueError, match=r"neither|not a size"):
        memory.parse_reserve(text)


def test_the_budget_is_what_the_owner_leaves():
    assert memory.budget(100 * GIB, Reserve(share=0.25)) == 75 * GIB
    assert memory.budget(24 * GIB, Reserve(size=4 * GIB)) == 20 * GIB
    assert memory.budget(2 * GIB, Reserve(size=4 * GIB)) == 0


def test_the_need_on_a_cpu_is_weights_cache_and_overhead():
    assert memory.cpu_need(10 * GIB, 4 * GIB) == 12 * GIB + 4 * GIB + CPU_OVERHEAD


def test_a_model_alone_on_a_gpu_gets_all_of_it():
    assert memory.gpu_needs({"a": 10 * GIB}, 40 * GIB) == {"a": 40 * GIB}


def test_models_that_fit_together_share_what_they_leave_over():
    needs = memory.gpu_needs({"a": 10 * GIB, "b": 5 * GIB}, 40 * GIB)
    assert sum(needs.values()) == pytest.approx(40 * GIB, abs=2)
    assert needs["a"] - needs["b"] == pytest.approx(6 * GIB, abs=2)


def test_models_that_do_not_fit_together_can_each_be_loaded():
    needs = memory.gpu_needs({"a": 20 * GIB, "b": 20 * GIB}, 40 * GIB)
    assert sum(needs.values()) > 40 * GIB
    assert all(24 * GIB + GPU_OVERHEAD < need <= 40 * GIB for need in needs.values())


def test_a_model_too_large_for_the_gpu_never_fits():
    needs = memory.gpu_needs({"a": 60 * GIB}, 40 * GIB)
    assert memory.never_fits(needs["a"], 40 * GIB).startswith("needs 74.5 GiB, this node gives 40.0 GiB")
    assert memory.never_fits(40 * GIB, 40 * GIB) == ""


def test_the_sleep_level_follows_the_free_host_memory():
    assert memory.sleep_level(16 * GIB, 10 * GIB) == 1
    assert memory.sleep_level(14 * GIB, 10 * GIB) == 2
