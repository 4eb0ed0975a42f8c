"""What goes to an engine besides completions, by the official client, through real processes."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.journeys.cluster import MODEL, Cluster
from tests.journeys.conftest import journey_database

EMBEDDER = "fake-embedder"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One agent whose model makes tokens, and one whose makes vectors."""
    with Cluster(tmp_path_factory.mktemp("surface"), journey_database()) as running:
        running.start_agent("two", "--embeds", model=EMBEDDER)
        running.agent_ready("one")
        running.until(lambda: running.serves("two", EMBEDDER), "two serves", 30)
        yield running


@pytest.fixture
def client(cluster: Cluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key=cluster.key, max_retries=0) as made:
        yield made


@pytest.mark.parametrize(
    ("given", "lengths"),
    [("one two", [2]), (["one", "one two three"], [1, 3]), ([5, 6, 7], [3]), ([[5], [6, 7]], [1, 2])],
)
def test_every_form_of_input_gives_its_vectors(client, given, lengths):
    # The client asks for base64 by itself and unpacks it, unless told otherwise.
    for how in ({}, {"encoding_format": "float"}):
        answer = client.embeddings.create(model=EMBEDDER, input=given, dimensions=6, **how)
        assert [list(e.embedding) for e in answer.data] == [
            [float(i), float(length), 0.5, -0.5, float(i), float(length)] for i, length in enumerate(lengths)
        ]
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (sum(lengths), sum(lengths))


def test_an_embedding_is_a_job_with_its_usage(client, cluster):
    answer = client.embeddings.with_raw_response.create(model=EMBEDDER, input="one two")
    record = cluster.job_ended(answer.headers["x-job-id"])
    assert (record["status"], record["url"]) == ("completed", "/v1/embeddings")
    assert record["usage"] == {"prompt_tokens": 2, "completion_tokens": 0, "total_tokens": 2}


def test_a_response_whole_streamed_as_a_job_and_in_a_conversation(client, cluster):
    answer = client.responses.create(
        model=MODEL, input="red green", instructions="brief", max_output_tokens=3
    )
    assert (answer.output_text, answer.status) == ("red green red", "incomplete")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 3)
    record = cluster.job_ended(answer.id)
    assert (answer.id, record["url"]) == (f"resp_{record['id']}", "/v1/responses")
    assert record["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}

    events = list(client.responses.create(model=MODEL, input="a b", max_output_tokens=3, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert events[0].response.id == events[-1].response.id
    assert cluster.job_ended(events[0].response.id)["usage"]["completion_tokens"] == 3

    more = [{"role": "user", "content": "red green"}, *answer.output, {"role": "user", "content": "and blue"}]
    assert client.responses.create(model=MODEL, input=more, max_output_tokens=2).output_text == "and blue"

    body = {"model": MODEL, "input": "one two", "max_output_tokens": 2}
    accepted = cluster.post("/jobs", {"url": "/v1/responses", "body": body})
    result = cluster.job_ended(accepted.json()["id"])["result"]
    assert result["output"][0]["content"][0]["text"] == "one two"


def test_a_response_is_not_kept(client):
    answer = client.responses.create(model=MODEL, input="x", max_output_tokens=1)
    for look in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError) as e:
            look(answer.id)
        assert e.value.code == "response_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=MODEL, input="and?", previous_response_id=answer.id)
    assert refused.value.param == "previous_response_id"


def test_embeddings_can_be_asked_for_and_fetched_later(cluster):
    accepted = cluster.post("/jobs", {"model": EMBEDDER, "input": ["one", "one two"]})
    assert accepted.status_code == 202
    record = cluster.job_ended(accepted.json()["id"])
    assert record["status"] == "completed"
    assert [e["embedding"][1] for e in record["result"]["data"]] == [1.0, 2.0]
    assert record["usage"]["prompt_tokens"] == 3


def test_a_model_that_makes_vectors_makes_no_tokens(client):
    with pytest.raises(openai.NotFoundError, match="not made for such requests"):
        client.completions.create(model=EMBEDDER, prompt="x")


def test_an_input_that_is_too_long_is_refused_as_such(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=EMBEDDER, input=[5] * 2049)
    assert refused.value.code == "context_length_exceeded"


def test_a_text_becomes_tokens_and_tokens_the_text(cluster):
    made = cluster.post("/tokenize", {"model": MODEL, "prompt": "a b a c", "return_token_strs": True}).json()
    assert (made["count"], made["token_strs"]) == (4, ["a", "b", "a", "c"])
    assert made["tokens"][0] == made["tokens"][2] != made["tokens"][1]
    back = cluster.post("/detokenize", {"model": MODEL, "tokens": made["tokens"]})
    assert (back.status_code, back.json()) == (200, {"prompt": "a b a c"})
    chat = cluster.post("/tokenize", {"model": MODEL, "messages": [{"role": "user", "content": "b c"}]})
    assert chat.json()["tokens"] == [made["tokens"][1], made["tokens"][3]]
    record = cluster.job_ended(chat.headers["x-job-id"])
    assert (record["url"], record["usage"]["prompt_tokens"]) == ("/tokenize", 0)


def test_tokens_that_the_model_does_not_have_are_the_callers_mistake(cluster):
    answer = cluster.post("/detokenize", {"model": MODEL, "tokens": [2**31 - 1]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tokens")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a b", ["a b a"]),
        (["a b", "c"], ["a b a", "c c c"]),
        ([7, 8], ["7 8 7"]),
        ([[7, 8], [9]], ["7 8 7", "9 9 9"]),
    ],
)
def test_every_form_of_prompt_has_its_choices(client, prompt, texts, stream):
    asked = {"model": MODEL, "prompt": prompt, "n": 2, "max_tokens": 3}
    if stream:
        pieces = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        usage, choices = pieces[-1].usage, [c for piece in pieces for c in piece.choices]
        assert len({piece.id for piece in pieces}) == len({piece.created for piece in pieces}) == 1
    else:
        answer = client.completions.create(**asked)
        usage, choices = answer.usage, answer.choices
    said = ["".join(c.text for c in choices if c.index == i) for i in range(2 * len(texts))]
    assert said == [text for text in texts for _ in range(2)]
    assert [c.finish_reason for c in choices if c.finish_reason] == ["length"] * len(said)
    assert usage.completion_tokens == 3 * len(said)


def test_echo_and_logprobs_pass(client):
    answer = client.completions.create(model=MODEL, prompt="a b", max_tokens=1, echo=True, logprobs=1)
    assert answer.choices[0].text == "a b a"
    assert answer.choices[0].logprobs.token_logprobs == [-0.5]


@pytest.mark.parametrize(
    "stop", [{"stop": "c"}, {"stop": ["x", "c"]}, {"extra_body": {"stop_sequences": ["c"]}}]
)
def test_an_answer_ends_at_a_stop_and_says_so(client, stop):
    answer = client.completions.create(model=MODEL, prompt="a b c d", max_tokens=9, **stop)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("a b", "stop")


def test_best_of_is_refused_with_what_to_do_instead(client):
    with pytest.raises(openai.BadRequestError, match="use 'n'") as refused:
        client.completions.create(model=MODEL, prompt="a", best_of=2)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "best_of")


def test_a_model_says_how_long_its_context_is(client):
    found = client.models.retrieve(MODEL)
    assert (found.id, found.object, found.max_model_len) == (MODEL, "model", 2048)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none/such")
