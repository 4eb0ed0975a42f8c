from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from tests.worker_agent.conftest import free_port
from tests.worker_agent.engines import fake_engine
from tests.worker_agent.stand_in import work
from worker_agent.contract import Outcome
from worker_agent.engine_client import EngineClient
from worker_agent.loading import is_alive
from worker_agent.meter import parse_metrics
from worker_agent.serving import Pulse
from worker_agent.sleeping import can_sleep, fall_asleep, wake_up
from worker_agent.supervision import Patience, Signs, Verdict, judge, until_hung

PATIENCE = Patience(canary=30.0, abort=10.0, idle=60.0)


@pytest.mark.parametrize(
    ("signs", "verdict"),
    [
        (Signs(in_flight=1, silence=29, lifeless=29, idle=500), Verdict.WELL),
        (Signs(in_flight=1, silence=30, lifeless=30, idle=500), Verdict.SUSPECT),
        (Signs(in_flight=0, silence=59, lifeless=59, idle=59), Verdict.WELL),
        (Signs(in_flight=0, silence=60, lifeless=60, idle=60), Verdict.SUSPECT),
        (Signs(in_flight=0, silence=60, lifeless=60, idle=5), Verdict.WELL),
        # One request has waited in vain: all others too, or only that one?
        (Signs(in_flight=3, silence=5, lifeless=5, idle=0, overdue=5), Verdict.HUNG),
        (Signs(in_flight=3, silence=1, lifeless=1, idle=0, overdue=5), Verdict.SUSPECT),
        (Signs(in_flight=0, silence=5, lifeless=5, idle=0, overdue=5), Verdict.HUNG),
        # Callers who give up and ask again are no sign of life.
        (Signs(in_flight=1, silence=1, lifeless=31, idle=0, overdue=30), Verdict.HUNG),
        # An abort that is ignored hurts nobody as long as others have tokens.
        (Signs(in_flight=1, silence=1, lifeless=1, idle=100, unconfirmed_abort=True), Verdict.WELL),
        (Signs(in_flight=0, silence=1, lifeless=1, idle=9, unconfirmed_abort=True), Verdict.WELL),
        (Signs(in_flight=0, silence=1, lifeless=1, idle=10, unconfirmed_abort=True), Verdict.KEEPS_ABORTED),
    ],
)
def test_judge(signs, verdict):
    assert judge(signs, PATIENCE) is verdict


def test_a_server_that_unloads_by_itself_is_not_kept_awake():
    assert judge(Signs(0, 1e6, 1e6, 1e6), Patience(30.0, 10.0, 0.0)) is Verdict.WELL


def test_asking_again_at_once_is_no_sign_of_life():
    pulse = Pulse()
    before = pulse.last_sign
    pulse.began()
    pulse.ended(work(), Outcome.CANCELLED)
    busy_since = pulse.busy_since
    pulse.began()
    assert pulse.last_sign == before
    assert pulse.busy_since == busy_since


def watched(client, pulse, **patience):
    async def look():
        return parse_metrics((await client.get("/metrics"))[1].decode())

    found = Patience(**{"canary": 0.3, "abort": 0.3, "idle": 0.0, **patience})
    return until_hung(pulse, found, look=look, canary=lambda seconds: is_alive(client, "m", seconds))


async def test_a_wedged_engine_is_found_by_its_canary():
    with fake_engine(free_port(), "--hang-after-tokens", "1") as port:
        client, pulse = EngineClient(port), Pulse()
        pulse.began()
        assert (await client.get("/health"))[0] == 200
        why = await asyncio.wait_for(watched(client, pulse), 20)
        assert "canary" in why
        client.close()


async def test_a_request_that_waited_out_its_limit_in_silence_condemns_without_a_canary():
    with fake_engine(free_port(), "--hang-after-tokens", "1") as port:
        client, pulse = EngineClient(port), Pulse()
        watch = asyncio.create_task(watched(client, pulse, canary=1000.0, abort=1000.0))
        pulse.began()
        await asyncio.sleep(0.3)
        pulse.ended(work(stall_seconds=0.2), Outcome.STALLED)
        assert "silence" in await asyncio.wait_for(watch, 20)
        client.close()


async def test_an_engine_that_is_full_and_works_is_not_condemned_for_a_canary_that_waits():
    with fake_engine(free_port(), "--per-second", "20", "--max-num-seqs", "1") as port:
        client, pulse = EngineClient(port), Pulse()
        body = json.dumps({"model": "m", "prompt": "x", "max_tokens": 1000, "stream": True}).encode()
        async with client.exchange("POST", "/v1/completions", body) as answer:
            await answer.read()
            pulse.began()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(watched(client, pulse), 2)
        client.close()


async def test_a_foreign_server_that_counts_no_steps_is_not_condemned_for_one_long_answer():
    async def blind():
        return None

    with fake_engine(free_port(), "--per-second", "20", "--max-num-seqs", "1") as port:
        client, pulse = EngineClient(port), Pulse()
        body = json.dumps({"model": "m", "prompt": "x", "max_tokens": 1000}).encode()
        long = asyncio.create_task(client.post("/v1/completions", body, timeout=60))
        await asyncio.sleep(0.2)
        pulse.began()
        patience = Patience(canary=0.3, abort=0.3, idle=0.0)
        how: Any = {"look": blind, "canary": lambda seconds: is_alive(client, "m", seconds)}
        assert "canary" in await asyncio.wait_for(until_hung(pulse, patience, **how), 20)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(until_hung(pulse, patience, only_by_steps=True, **how), 2)
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)
        client.close()


async def test_level_two_reads_the_weights_again_when_it_wakes():
    with fake_engine(free_port(), "--sleep-mode") as port:
        client = EngineClient(port)
        assert await can_sleep(client)
        for level in (1, 2):
            await fall_asleep(client, level)
            assert not await is_alive(client, "m", 5.0)
            await wake_up(client, "m", level, 5.0)
            assert await is_alive(client, "m", 5.0)
        client.close()


async def test_an_engine_without_sleep_mode_says_so():
    with fake_engine(free_port()) as port:
        client = EngineClient(port)
        assert not await can_sleep(client)
        client.close()


def test_a_pulse_starts_to_count_silence_with_its_first_request():
    pulse = Pulse()
    pulse.idle_since = pulse.busy_since = time.monotonic() - 1000
    pulse.began()
    assert time.monotonic() - pulse.busy_since < 10
