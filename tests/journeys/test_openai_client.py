"""The official client, pointed at the cluster with a key, and nothing else changed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.journeys.cluster import MODEL, Cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key=cluster.key, max_retries=0) as made:
        yield made


def say(text: str) -> list:
    return [{"role": "user", "content": text}]


def test_models_are_listed(client):
    assert [m.id for m in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_a_chat_is_answered_whole(client, cluster):
    answer = client.chat.completions.create(model=MODEL, messages=say("red green blue"), max_tokens=3)
    assert answer.choices[0].message.content == "red green blue"
    assert answer.usage.prompt_tokens == 3
    assert answer.usage.completion_tokens == 3
    record = cluster.job_ended(answer.id)
    assert record["status"] == "completed"
    assert record["usage"]["completion_tokens"] == 3
    assert record["attempts"][0]["node"] == "one"


def test_a_text_completion_is_answered_whole(client):
    answer = client.completions.create(model=MODEL, prompt="one two", max_tokens=4)
    assert answer.choices[0].text == "one two one two"


def test_a_chat_streams_with_its_usage_at_the_end(client):
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=say("a b c"),
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "a b c a b"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 5
    assert len({c.id for c in chunks}) == 1


def test_a_stream_shows_no_usage_that_was_not_asked_for(client):
    chunks = list(client.completions.create(model=MODEL, prompt="p q", max_tokens=3, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == "p q p"
    assert all(c.usage is None for c in chunks)


def test_parameters_of_the_engine_pass_through(client):
    answer = client.chat.completions.create(
        model=MODEL,
        messages=say("x"),
        max_tokens=2,
        n=2,
        tools=[{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}],
    )
    assert len(answer.choices) == 2
    assert answer.choices[0].message.tool_calls[0].function.name == "look_up"


def test_each_of_many_at_once_gets_its_own_answer(client):
    def ask(i: int) -> str:
        words = f"caller {i} says"
        stream = client.chat.completions.create(model=MODEL, messages=say(words), max_tokens=12, stream=True)
        return "".join(c.choices[0].delta.content or "" for c in stream)

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(96)))
    assert answers == [" ".join([f"caller {i} says"] * 4) for i in range(96)]


@pytest.mark.parametrize(
    ("body", "error", "code", "param"),
    [
        ({"model": "nope"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": "hot"}, openai.BadRequestError, "invalid_value", "temperature"),
        ({"max_tokens": 100_000}, openai.BadRequestError, "rejected_by_engine", None),
        ({"messages": []}, openai.BadRequestError, "invalid_value", "messages"),
    ],
)
def test_mistakes_raise_the_clients_own_exceptions(client, body, error, code, param):
    with pytest.raises(error) as raised:
        client.chat.completions.create(**{"model": MODEL, "messages": say("x"), **body})
    assert raised.value.code == code
    assert raised.value.param == param


def test_a_wrong_key_is_refused(cluster):
    with (
        openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="sk-gt-wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as raised,
    ):
        client.models.list()
    assert raised.value.code == "invalid_api_key"
