from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_vllm import write_wrapper
from worker_agent import settings
from worker_agent.launch import ModelChoice, engine_command, engine_environment, gpus_used

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


def test_models_that_are_offered_and_servers_that_already_run():
    words = ["--coordinator", "http://h", "--offer", "a=Org/A"]
    words += ["--engine-url", "l=llama3:8b@http://127.0.0.1:11434", "--engine-url", "x@https://gpu.lan/v1/"]
    told = settings.read(words, {"GPUTORRENT_NEED": "a=2GiB", "GPUTORRENT_QUIET_HOURS": "Mon 09:00-10:00"})
    assert told.models == ()
    assert told.offers == (ModelChoice("a", "Org/A"),)
    local, far = told.remotes
    assert (local.name, local.served_name, local.where) == ("l", "llama3:8b", "http://127.0.0.1:11434")
    assert not local.is_exposed
    assert (far.name, far.served_name, far.where) == ("x", "", "https://gpu.lan:443")
    assert not far.is_exposed
    assert settings.options.engine_url("y@http://gpu.lan:8000").is_exposed
    assert told.needs == (("a", 2 << 30),)
    assert len(told.quiet_hours) == 1
    assert told.sleep_mode


def test_an_agent_that_only_watches_servers_needs_no_vllm(tmp_path):
    words = ("--coordinator", "http://127.0.0.1:9", "--engine-url", "x@http://127.0.0.1:8", "--token", "t0k")
    code, _, err = run(*words, "--connect-seconds", "0", "--state-dir", str(tmp_path))
    assert code == 1
    assert "cannot reach the coordinator" in err


def test_the_gpus_of_an_engine_are_counted_from_its_arguments():
    assert gpus_used(()) == 1
    assert gpus_used(("--tensor-parallel-size", "4", "-pp", "2")) == 8
    assert gpus_used(("--tensor-parallel-size=2", "--dtype", "float16")) == 2


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
        ([*GOOD, "--offer", "m"], "twice"),
        ([*GOOD, "--need", "other=1GiB"], "neither"),
        ([*GOOD, "--need", "m=lots"], "size"),
        ([*GOOD, "--vram-reserve", "120%"], "share"),
        ([*GOOD, "--quiet-hours", "9 to 5"], "not like"),
        ([*GOOD, "--engine-url", "http://127.0.0.1:1"], "NAME@URL"),
        ([*GOOD, "--engine-url", "x@ftp://127.0.0.1"], "NAME@URL"),
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
    assert "--max-num-seqs 4" in text
    assert text.endswith("--max-model-len 512 --dtype float32")
    slow = engine_command("py", local, port=1, slots=4, max_model_len=None, extra=(), single_precision=True)
    assert slow[-2:] == ["--dtype", "float32"]
    shared = engine_command(
        *("py", local), port=1, slots=4, max_model_len=None, extra=(), gpu_share=0.45, sleep_mode=True
    )
    assert shared[-3:] == ["--gpu-memory-utilization", "0.450", "--enable-sleep-mode"]
    assert engine_environment({}, local, has_gpu=True, sleep_mode=True)["VLLM_SERVER_DEV_MODE"] == "1"
    base = {"PATH": "/bin", "GPUTORRENT_TOKEN": "t0ken"}
    cpu = engine_environment(base, local, has_gpu=False)
    assert "GPUTORRENT_TOKEN" not in cpu
    assert cpu["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert cpu["HF_HUB_OFFLINE"] == "1"
    assert cpu["VLLM_NO_USAGE_STATS"] == cpu["DO_NOT_TRACK"] == "1"
    gpu = engine_environment(base, ModelChoice("m", "Org/M"), has_gpu=True)
    assert "VLLM_CPU_KVCACHE_SPACE" not in gpu
    assert "HF_HUB_OFFLINE" not in gpu
