from __future__ import annotations

import json
import os

from worker_agent.launch import ModelChoice
from worker_agent.remembered import Lesson, Remembered, key_of
from worker_agent.weights import downloading, on_disk


def sparse(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def test_the_weights_of_a_folder_are_counted_by_size(tmp_path):
    sparse(tmp_path / "model-1.safetensors", 5 << 30)
    sparse(tmp_path / "model-2.safetensors", 3 << 30)
    sparse(tmp_path / "pytorch_model.bin", 8 << 30)  # the same again in another format
    sparse(tmp_path / "tokenizer.json", 1000)
    assert on_disk(ModelChoice("m", str(tmp_path)), {}) == 8 << 30
    assert on_disk(ModelChoice("m", str(tmp_path / "gone")), {}) == 0


def test_the_hub_cache_is_looked_into(tmp_path):
    env = {"HF_HOME": str(tmp_path)}
    choice = ModelChoice("m", "Org/M")
    assert on_disk(choice, env) == 0
    repository = tmp_path / "hub" / "models--Org--M"
    sparse(repository / "blobs" / "abc", 70)
    snapshot = repository / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    os.symlink(repository / "blobs" / "abc", snapshot / "model.safetensors")
    assert on_disk(choice, env) == 70
    assert downloading(choice, env) is None


def test_a_download_tells_how_far_it_is(tmp_path):
    env = {"HF_HUB_CACHE": str(tmp_path)}
    choice = ModelChoice("m", "Org/M")
    repository = tmp_path / "models--Org--M"
    sparse(repository / "blobs" / "abc", 30)
    sparse(repository / "blobs" / "def.incomplete", 20)
    found = downloading(choice, env)
    assert found is not None
    assert (found.done, found.share) == (50, 0.0)
    snapshot = repository / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    index = {"metadata": {"total_size": 200}, "weight_map": {}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    found = downloading(choice, env)
    assert found is not None
    assert found.share == 0.25


def test_what_was_learnt_outlives_a_restart_and_a_damaged_file_is_an_empty_one(tmp_path):
    path = tmp_path / "needs.json"
    key = key_of("m", "/models/m", ["--dtype", "float32"])
    Remembered(path).learn(key, Lesson(123, 4.5))
    assert Remembered(path).about(key) == Lesson(123, 4.5)
    assert Remembered(path).about(key_of("m", "/models/m", [])) == Lesson()
    for damage in ("", "[]", '{"m": 1}', '{"m": {"need": "x"}}'):
        path.write_text(damage)
        assert Remembered(path).about(key) == Lesson()
