from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_vllm import write_wrapper
from worker_agent import settings
from worker_agent.launch import ModelChoice, engine_command, engine_environment

GOOD = ["--coordinator", "http://host:8000", "--model", "m"]


def run(*words, env=None, cwd=None):
    """The program itself: its exit code and what it says."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "worker_agent", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "PYTHONPATH": str(root), **(env or {})},
        cwd=cwd or root,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_line_wins_over_the_environment_which_wins_over_the_default():
    assert settings.read(GOOD, {}).slots == 64
    assert settings.read(GOOD, {"GPUTORRENT_SLOTS": "8"}).slots == 8
    assert settings.read([*GOOD, "--slots", "2"], {"GPUTORRENT_SLOTS": "8"}).slots == 2


def test_everything_can_come_from_the_environment():
    told = settings.read(
        [],
        {
            "GPUTORRENT_COORDINATOR": "https://host/",
            "GPUTORRENT_MODEL": "a, b=Org/B",
            "GPUTORRENT_TOKEN": "t0ken",
            "GPUTORRENT_LABEL": "rack=7",
            "GPUTORRENT_ENGINE_ARGS": "--dtype 'float 32'",
            "GPUTORRENT_LOG_JSON": "1",
        },
    )
    assert told.coordinator == "https://host"
    assert told.models == (ModelChoice("a", "a"), ModelChoice("b", "Org/B"))
    assert told.labels == (("rack", "7"),)
    assert told.engine_args == ("--dtype", "float 32")
    assert told.log_json
    assert "t0ken" not in repr(told)


def test_a_folder_lends_its_name_to_the_model(tmp_path):
    folder = tmp_path / "smol"
    folder.mkdir()
    told = settings.read(["--coordinator", "http://h", "--model", str(folder)], {})
    assert told.models == (ModelChoice("smol", str(folder)),)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--coordinator"),
        (["--coordinator", "http://h"], "--model"),
        (["--coordinator", "ftp://h", "--model", "m"], "is not a URL"),
        (["--coordinator", "http://user:pw@h", "--model", "m"], "--token"),
        (["--coordinator", "http://h", "--model", "bad name"], "NAME"),
        (["--coordinator", "http://h", "--model", "m", "--model", "m=x"], "twice"),
        ([*GOOD, "--slots", "0"], "whole number"),
        ([*GOOD, "--grace-seconds", "nan"], "seconds"),
        ([*GOOD, "--name", "bad name"], "letters"),
        ([*GOOD, "--label", "novalue"], "KEY=VALUE"),
        ([*GOOD, "--engine-args", "'open"], "quotation"),
        ([*GOOD, "--redis-ca", "/does/not/exist"], "no file"),
        ([*GOOD, "--surprise"], "--surprise"),
    ],
)
def test_a_wrong_option_is_one_clear_line_and_exit_code_2(words, says, capsys):
    with pytest.raises(SystemExit) as ended:
        settings.read(words, {})
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert says in lines[0]


def test_help_and_version():
    code, out, _ = run("--version")
    assert code == 0
    assert "0.1.0" in out
    code, out, _ = run("--help")
    assert code == 0
    assert "GPUTORRENT_" in out


def test_a_python_without_vllm_is_said_with_the_remedy(tmp_path):
    code, _, err = run(*GOOD, "--state-dir", str(tmp_path), cwd=tmp_path)
    assert code == 1
    assert "pip install vllm" in err
    assert "--engine-python" in err
    assert len(err.splitlines()) == 1


def test_a_missing_engine_python_and_a_missing_folder(tmp_path):
    code, _, err = run(*GOOD, "--engine-python", str(tmp_path / "nope"))
    assert (code, len(err.splitlines())) == (1, 1)
    assert "nope" in err
    code, _, err = run("--coordinator", "http://h", "--model", f"m={tmp_path}/gone")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "there is no folder" in err


def test_an_agent_without_credential_and_token_asks_for_one(tmp_path):
    python = write_wrapper(tmp_path / "python")
    code, _, err = run(*GOOD, "--engine-python", str(python), "--state-dir", str(tmp_path / "state"))
    assert code == 1
    assert "--token" in err
    assert "Traceback" not in err


def test_a_coordinator_that_is_not_there_is_tried_for_a_while_then_named(tmp_path):
    python = write_wrapper(tmp_path / "python")
    words = [
        "--coordinator",
        "http://127.0.0.1:9",
        "--model",
        "m",
        "--connect-seconds",
        "1",
        "--token",
        "t0k",
    ]
    code, _, err = run(*words, "--engine-python", str(python), "--state-dir", str(tmp_path / "state"))
    assert code == 1
    assert "trying again" in err
    assert "http://127.0.0.1:9" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert "t0k" not in err


def test_the_engine_is_told_what_it_needs_and_no_secrets():
    local = ModelChoice("m", "/models/m")
    command = engine_command("py", local, port=1, slots=4, max_model_len=512, extra=("--dtype", "float32"))
    text = " ".join(command)
    assert text.startswith("py -m vllm.entrypoints.openai.api_server --model /models/m --served-model-name m")
    assert "--host 127.0.0.1" in text
    assert "--max-num-seqs 4 --max-model-len 512 --dtype float32" in text
    base = {"PATH": "/bin", "GPUTORRENT_TOKEN": "t0ken"}
    cpu = engine_environment(base, local, has_gpu=False)
    assert "GPUTORRENT_TOKEN" not in cpu
    assert cpu["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert cpu["HF_HUB_OFFLINE"] == "1"
    assert cpu["VLLM_NO_USAGE_STATS"] == cpu["DO_NOT_TRACK"] == "1"
    gpu = engine_environment(base, ModelChoice("m", "Org/M"), has_gpu=True)
    assert "VLLM_CPU_KVCACHE_SPACE" not in gpu
    assert "HF_HUB_OFFLINE" not in gpu
