"""Asking: against the stand-in engine, which speaks the same protocol."""

import sys
from pathlib import Path

import httpx
import pytest

from gputorrent import ports
from gputorrent.children import Child
from gputorrent.question import NoAnswer, ask
from tests.launcher.test_children import until

FAKE = Path(__file__).resolve().parent.parent / "fake_vllm.py"


@pytest.fixture
def engine(tmp_path):
    started = []

    def start(*flags: str) -> str:
        port = ports.any_free()
        child = Child(
            "engine", [sys.executable, FAKE, "--model", "m", "--port", str(port), *flags], tmp_path / "log"
        )
        child.start()
        started.append(child)
        url = f"http://127.0.0.1:{port}"

        def healthy() -> bool:
            try:
                return httpx.get(f"{url}/health").status_code == 200
            except httpx.HTTPError:
                return False

        until(healthy)
        # The stand-in's knobs spare its first request, which an agent spends on a warm-up.
        httpx.post(f"{url}/v1/completions", json={"model": "m", "prompt": "x", "max_tokens": 1})
        return url

    yield start
    for child in started:
        child.stop()


def test_the_answer_is_shown_as_it_comes_and_measured(engine):
    shown: list[str] = []
    answer = ask(engine("--tokens", "8", "--per-second", "100"), "key", "m", shown.append)
    assert answer.text == "".join(shown)
    assert len(shown) > 1
    assert answer.tokens == 8
    assert answer.ttft_ms > 0
    assert answer.tokens_per_s > 0


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--error-status", "503"), "HTTP 503"),
        (("--stream-error",), "ended with an error"),
        (("--cut-stream",), r"broke off|RemoteProtocolError"),
        (("--die-after-tokens", "3"), r"broke off|RemoteProtocolError|ReadError"),
    ],
)
def test_anything_but_a_whole_answer_is_none(engine, flags, reason):
    with pytest.raises(NoAnswer, match=reason):
        ask(engine(*flags), "key", "m", lambda text: None)


def test_nobody_there_is_no_answer():
    with pytest.raises(NoAnswer, match="ConnectError"):
        ask(f"http://127.0.0.1:{ports.any_free()}", "key", "m", lambda text: None)
