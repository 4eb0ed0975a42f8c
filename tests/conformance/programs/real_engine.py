"""The official Python client against a model that really answers: what must hold whatever it says."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
from pydantic import BaseModel
from reporting import FAST, KEY, NO_MODEL, URL, WEATHER, WRONG_KEY, case, go, refusal, say

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
QUESTION = "What is the capital of France?"
SURE: Any = {"model": FAST, "temperature": 0}


class Place(BaseModel):
    city: Literal["Paris", "Rome"]
    large: bool


def chat(text: str = QUESTION, **more: Any) -> Any:
    return client.chat.completions.create(messages=say(text), **{**SURE, "max_tokens": 12, **more})


def respond(given: Any = QUESTION, **more: Any) -> Any:
    return client.responses.create(input=given, **{**SURE, "max_output_tokens": 12, **more})


def adds_up(prompt: int, answer: int, both: int) -> bool:
    return prompt > 0 and answer > 0 and prompt + answer == both


@case
def models() -> dict[str, Any]:
    card: Any = client.models.retrieve(FAST)
    return {"listed": FAST in {model.id for model in client.models.list()}, "context": card.max_model_len}


@case
def completion() -> dict[str, Any]:
    answer = client.completions.create(prompt="The capital of France is", max_tokens=4, **SURE)
    choice, used = answer.choices[0], answer.usage
    assert used is not None
    return {"knows": "Paris" in choice.text, "finish": choice.finish_reason, "tokens": used.completion_tokens}


@case
def completion_forms() -> dict[str, Any]:
    ask = client.completions.create
    several = ask(prompt=["One, two,", "Red, green,"], max_tokens=2, **SURE)
    ids = ask(prompt=[504, 2000, 282], max_tokens=2, **SURE)
    echo = ask(prompt="One, two,", max_tokens=2, echo=True, logprobs=2, **SURE).choices[0]
    logprobs: Any = echo.logprobs
    return {
        "several": [choice.index for choice in several.choices],
        "ids": ids.usage.prompt_tokens if ids.usage else None,
        "echo": echo.text.startswith("One, two,"),
        "logprobs": "".join(logprobs.tokens) == echo.text and len(logprobs.top_logprobs[-1]) >= 2,
    }


@case
def completion_stream() -> dict[str, Any]:
    whole = client.completions.create(prompt="One, two,", max_tokens=6, **SURE).choices[0].text
    parts = list(client.completions.create(prompt="One, two,", max_tokens=6, stream=True, **SURE))
    return {"same": "".join(part.choices[0].text for part in parts) == whole, "parts": len(parts) > 2}


@case
def chat_whole() -> dict[str, Any]:
    answer = chat()
    choice, used = answer.choices[0], answer.usage
    return {
        "knows": "Paris" in choice.message.content,
        "finish": choice.finish_reason,
        "usage": adds_up(used.prompt_tokens, used.completion_tokens, used.total_tokens),
        "role": choice.message.role,
    }


@case
def stream() -> dict[str, Any]:
    chunks = list(chat(stream=True))
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    return {
        "same": text == chat().choices[0].message.content,
        "finish": chunks[-1].choices[0].finish_reason,
        "ids": len({(c.id, c.created, c.model) for c in chunks}),
        "usages": sum(c.usage is not None for c in chunks),
    }


@case
def stream_usage() -> dict[str, Any]:
    last = list(chat(stream=True, stream_options={"include_usage": True}))[-1]
    used, whole = last.usage, chat().usage
    same = (used.prompt_tokens, used.completion_tokens) == (whole.prompt_tokens, whole.completion_tokens)
    return {"choices": len(last.choices), "same": same}


@case
def stream_helper() -> dict[str, Any]:
    with client.chat.completions.stream(messages=say(QUESTION), max_tokens=12, **SURE) as events:
        final = events.get_final_completion()
    return {"knows": "Paris" in (final.choices[0].message.content or "")}


@case
def several_choices() -> dict[str, Any]:
    answer = chat(n=3, temperature=1.0, seed=7)
    return {"choices": [choice.index for choice in answer.choices]}


@case
def stop() -> dict[str, Any]:
    choice = chat(stop=["Paris"]).choices[0]
    return {"finish": choice.finish_reason, "without": "Paris" not in choice.message.content}


@case
def length() -> dict[str, Any]:
    answer = chat(max_tokens=2)
    return {"finish": answer.choices[0].finish_reason, "tokens": answer.usage.completion_tokens}


@case
def logprobs() -> dict[str, Any]:
    choice = chat(logprobs=True, top_logprobs=2).choices[0]
    told = choice.logprobs.content
    return {
        "text": "".join(token.token for token in told).startswith(choice.message.content),
        "likely": all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in told),
    }


@case
def structured() -> dict[str, Any]:
    answer = client.chat.completions.parse(
        messages=say(QUESTION), response_format=Place, max_tokens=200, **SURE
    )
    return {"parsed": isinstance(answer.choices[0].message.parsed, Place)}


@case
def choice_of_words() -> dict[str, Any]:
    answer = chat(extra_body={"structured_outputs": {"choice": ["red", "blue"]}})
    return {"one": answer.choices[0].message.content in {"red", "blue"}}


@case
def tools() -> dict[str, Any]:
    """The engine was started without a parser of tool calls: it says so, and is not at fault."""
    return refusal(lambda: chat(tools=[WEATHER], tool_choice="auto"))


@case
def tools_declined() -> dict[str, Any]:
    """The template leaves out what a conversation had of tools."""
    call = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    messages: Any = [
        *say(QUESTION),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Paris"},
    ]
    answer = client.chat.completions.create(
        messages=messages, tools=[WEATHER], tool_choice="none", max_tokens=4, **SURE
    )  # type: ignore[call-overload]
    return {"finish": answer.choices[0].finish_reason in {"stop", "length"}}


@case
def response() -> dict[str, Any]:
    answer = respond()
    kind, _, job = answer.id.partition("_")
    used = answer.usage
    return {
        "knows": "Paris" in answer.output_text,
        "status": answer.status,
        "id": [kind, len(job)],
        "usage": adds_up(used.input_tokens, used.output_tokens, used.total_tokens),
    }


@case
def response_stream() -> dict[str, Any]:
    events = list(respond(stream=True))
    inside = [event.response for event in events if hasattr(event, "response")]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    return {
        "first": events[0].type,
        "last": events[-1].type,
        "same": text == inside[-1].output_text == respond().output_text,
        "ids": len({(r.id, r.created_at, r.model) for r in inside}),
        "in_order": [event.sequence_number for event in events] == list(range(len(events))),
    }


@case
def response_helper() -> dict[str, Any]:
    with client.responses.stream(input=QUESTION, max_output_tokens=12, **SURE) as events:
        final = events.get_final_response()
    return {"knows": "Paris" in final.output_text}


@case
def response_cut() -> dict[str, Any]:
    answer = respond(max_output_tokens=2)
    return {
        "status": answer.status,
        "why": answer.incomplete_details.reason,
        "tokens": answer.usage.output_tokens,
    }


@case
def response_structured() -> dict[str, Any]:
    answer: Any = client.responses.parse(input=QUESTION, text_format=Place, max_output_tokens=200, **SURE)
    return {"parsed": isinstance(answer.output_parsed, Place)}


@case
def response_conversation() -> dict[str, Any]:
    """The items of the first answer go back exactly as the client gave them."""
    first = respond()
    items: Any = [*say(QUESTION), *first.output, *say("And of Italy?")]
    second = respond(items, instructions="Answer briefly.")
    return {
        "longer": second.usage.input_tokens > first.usage.input_tokens,
        "status": second.status is not None,
    }


@case
def response_logprobs() -> dict[str, Any]:
    answer = respond(include=["message.output_text.logprobs"], top_logprobs=2)
    told = answer.output[0].content[0].logprobs
    return {"told": len(told) > 0 and all(len(token.top_logprobs) == 2 for token in told)}


@case
def response_refused() -> dict[str, Any]:
    return refusal(lambda: respond(previous_response_id="resp_1"))


@case
def wrong_key() -> dict[str, Any]:
    with openai.OpenAI(base_url=URL, api_key=WRONG_KEY, max_retries=0) as other:
        return refusal(lambda: other.models.list())


@case
def no_model() -> dict[str, Any]:
    return refusal(lambda: chat(model=NO_MODEL))


@case
def bad_value() -> dict[str, Any]:
    return refusal(lambda: chat(temperature=9))


@case
def too_long() -> dict[str, Any]:
    return refusal(lambda: chat("word " * 3000))


@case
def too_long_stream() -> dict[str, Any]:
    return refusal(lambda: chat("word " * 3000, stream=True))


@case
def too_long_response() -> dict[str, Any]:
    return refusal(lambda: respond("word " * 3000))


@case
def tokens_by_id() -> dict[str, Any]:
    """A text there and back, by the model's own tokenizer: its paths are beside /v1."""
    base = URL.removesuffix("/v1")
    text = "The capital of France is"
    told: Any = client.post(f"{base}/tokenize", body={"model": FAST, "prompt": text}, cast_to=object)
    back: Any = client.post(
        f"{base}/detokenize", body={"model": FAST, "tokens": told["tokens"]}, cast_to=object
    )
    answer = client.completions.create(prompt=told["tokens"], max_tokens=2, **SURE)
    return {
        "back": back["prompt"] == text,
        "counted": told["count"] == len(told["tokens"]),
        "same": answer.usage.prompt_tokens == told["count"] if answer.usage else None,
        "knows": json.dumps(answer.choices[0].text).count("Paris") == 1,
    }


@case
def disconnect() -> dict[str, Any]:
    with chat("Tell me a long story.", max_tokens=1500, stream=True) as chunks:
        job = next(iter(chunks)).id
    return {"job": job}


@case
def response_disconnect() -> dict[str, Any]:
    with respond("Tell me a long story.", max_output_tokens=1500, stream=True) as events:
        job = next(iter(events)).response.id
    return {"job": job}


if __name__ == "__main__":
    go()
