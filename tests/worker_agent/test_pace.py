"""How fast one request decodes, by the engine's own counts."""

from __future__ import annotations

import pytest

from worker_agent.meter import EngineLoad, Pace, parse_metrics


def counts(tokens: float, seconds: float) -> EngineLoad:
    return EngineLoad(decoded=tokens, decode_seconds=seconds)


def test_the_counts_are_read_from_the_engines_metrics_and_summed_over_its_ranks():
    text = """# HELP vllm:inter_token_latency_seconds Histogram
vllm:inter_token_latency_seconds_bucket{engine="0",le="0.01",model_name="m"} 3.0
vllm:inter_token_latency_seconds_count{engine="0",model_name="m"} 100.0
vllm:inter_token_latency_seconds_sum{engine="0",model_name="m"} 2.0
vllm:inter_token_latency_seconds_count{engine="1",model_name="m"} 50.0
vllm:inter_token_latency_seconds_sum{engine="1",model_name="m"} 1.0
vllm:num_requests_running{engine="0"} 2.0
"""
    load = parse_metrics(text)
    assert (load.decoded, load.decode_seconds, load.running) == (150.0, 3.0, 2)


def test_nothing_is_said_until_enough_tokens_were_seen():
    pace = Pace()
    pace.see(counts(500, 10))
    assert pace.tokens_per_s == 0.0
    pace.see(counts(600, 12))
    assert pace.tokens_per_s == pytest.approx(50.0)


def test_a_full_batch_does_not_make_the_gpu_slower():
    pace = Pace()
    pace.see(counts(1000, 10))
    pace.see(counts(3000, 110))
    assert pace.tokens_per_s == pytest.approx(99.0)
    pace.see(counts(4000, 118))
    assert pace.tokens_per_s == pytest.approx(125.0)


def test_beats_with_few_tokens_gather():
    pace = Pace()
    pace.see(counts(1000, 10))
    for tokens in range(1004, 1032, 4):
        pace.see(counts(tokens, 10))
    assert pace.tokens_per_s == pytest.approx(100.0)
    pace.see(counts(1040, 10.2))
    assert pace.tokens_per_s == pytest.approx(200.0)


def test_an_engine_that_was_started_anew_counts_from_nothing():
    pace = Pace()
    pace.see(counts(1000, 10))
    pace.see(counts(100, 0.5))
    assert pace.tokens_per_s == pytest.approx(200.0)
