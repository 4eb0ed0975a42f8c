"""The launcher's command line, and what it makes of an answer."""

import pytest

from gputorrent.__main__ import options
from gputorrent.first_answer import engine_behind, what_is_wrong
from gputorrent.launcher import Result
from gputorrent.question import Answer

PARIS = Answer("The capital of France is Paris.", 100.0, 7, 20.0)
WORKERS = {"data": [{"models": [{"name": "a", "engine": ""}, {"name": "b", "engine": "vllm 0.32.0"}]}]}


def test_the_command_line_wins_over_the_environment():
    given = options(
        ["demo", "--port", "9000"], {"PORT": "8000", "HOST": "0.0.0.0", "MODEL": "x", "WORKERS": "3"}
    )
    assert (given.port, given.host, given.model, given.web_processes) == (9000, "0.0.0.0", "x", 3)


def test_nothing_said_means_choose_for_me():
    given = options(["up"], {})
    assert (given.port, given.host, given.model, given.web_processes) == (None, "", "", 1)


@pytest.mark.parametrize(
    "arguments",
    [["demo", "--port", "0"], ["demo", "--port", "65536"], ["up", "--workers", "many"], ["fly"], []],
)
def test_a_mistake_ends_it_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        options(arguments, {})
    assert end.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_engine_is_what_the_node_says_of_that_model():
    assert engine_behind(WORKERS, "b") == "vllm 0.32.0"
    assert engine_behind(WORKERS, "a") == ""
    assert engine_behind({}, "b") == ""


def test_an_answer_counts_only_if_vllm_gave_it_and_it_names_paris():
    assert what_is_wrong(PARIS, "vllm 0.32.0", expect_paris=True) is None
    assert "llama.cpp" in (what_is_wrong(PARIS, "llama.cpp", expect_paris=True) or "")
    assert "unknown" in (what_is_wrong(PARIS, "", expect_paris=True) or "")
    assert "empty" in (what_is_wrong(Answer(" \n", 1, 1, 1), "vllm", expect_paris=False) or "")
    berlin = Answer("Berlin", 1, 1, 1)
    assert "Paris" in (what_is_wrong(berlin, "vllm", expect_paris=True) or "")
    assert what_is_wrong(berlin, "vllm", expect_paris=False) is None


def test_the_last_line_is_one_json_object():
    good = Result(True, "m", "Paris\nis", 1.5, 20.0, 3.0)
    expected = '{"ok": true, "model": "m", "answer": "Paris\\nis", "ttft_ms": 1.5, "tokens_per_s": 20.0'
    assert good.line() == expected + ', "seconds_total": 3.0}'
    assert '"reason": "why"' in Result(False, "m", "", None, None, 3.0, "why").line()
