"""Reading MODEL."""

import json
from pathlib import Path

import pytest

from gputorrent import demo_model
from gputorrent.demo_model import Model


@pytest.fixture
def folder(tmp_path) -> Path:
    model = tmp_path / "my model (v2)"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    return model


def test_without_a_model_it_is_the_small_one():
    model = demo_model.choose("")
    assert model.default
    assert model.name == "SmolLM2-135M-Instruct"


def test_a_hugging_face_id_is_its_own_name():
    assert demo_model.choose("Qwen/Qwen3-0.6B") == Model("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B")
    assert demo_model.choose("small=Qwen/Qwen3-0.6B") == Model("small", "Qwen/Qwen3-0.6B")


def test_a_folder_is_named_after_itself(folder):
    assert demo_model.choose(str(folder)) == Model("my-model--v2-", str(folder))
    assert demo_model.choose(f"mine={folder}").argument == f"mine={folder}"


def test_a_relative_folder_becomes_absolute(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert demo_model.choose(f"x=./{folder.name}").source == str(folder)


@pytest.mark.parametrize(
    "text", ["/no/such/folder", "=x", "name=", "two words", "a b=owner/name", "-x", "x=--flag"]
)
def test_what_is_no_model_is_refused_with_one_line(text):
    with pytest.raises(ValueError, match=r"^MODEL: .+") as refusal:
        demo_model.choose(text)
    assert "\n" not in str(refusal.value)


def test_the_context_is_never_longer_than_the_models(folder):
    assert demo_model.context_without_gpu(Model("x", str(folder))) == 512
    assert demo_model.context_without_gpu(Model("x", "owner/name")) == 2048
