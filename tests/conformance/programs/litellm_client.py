"""LiteLLM, which maps every provider's errors to its own classes (named after OpenAI's)."""

from __future__ import annotations

import json
from typing import Any

import httpx
import litellm
from pydantic import BaseModel
from reporting import (
    CUT,
    FAST,
    GONE,
    KEY,
    MOST_RETRIES,
    NO_MODEL,
    PLAN,
    SLOW,
    UNLOADABLE,
    URL,
    WEATHER,
    WRONG_KEY,
    Tries,
    case,
    go,
    say,
    the_only_request,
    usage,
)  # fmt: skip
from reporting import refusal as any_refusal

litellm.telemetry = False
litellm.suppress_debug_info = True


class Place(BaseModel):
    name: str
    people: int


def chat(model: str = FAST, **more: Any) -> Any:
    return litellm.completion(
        **{"model": f"openai/{model}", "api_base": URL, "api_key": KEY, "max_retries": 0, **more}
    )


def text(**more: Any) -> Any:
    return litellm.text_completion(
        model=f"text-completion-openai/{FAST}", api_base=URL, api_key=KEY, max_retries=0, **more
    )


def refusal(**call: Any) -> dict[str, Any]:
    seen = any_refusal(lambda: chat(**call), Exception)
    return {name: seen[name] for name in ("error", "status")}


@case
def response() -> dict[str, Any]:
    answer = litellm.responses(
        model=f"openai/{FAST}", input="red green blue", max_output_tokens=3, api_base=URL, api_key=KEY
    )
    return {"text": answer.output_text, "status": answer.status}


@case
def completion() -> dict[str, Any]:
    answer = text(prompt="one two", max_tokens=4)
    choice = answer.choices[0]
    return {"text": choice.text, "finish": choice.finish_reason, "usage": usage(answer.usage)}


@case
def completion_stream() -> dict[str, Any]:
    return {"text": "".join(c.choices[0].text or "" for c in text(prompt="p q", max_tokens=3, stream=True))}


@case
def chat_whole() -> dict[str, Any]:
    answer = chat(messages=say("red green blue"), max_tokens=3)
    choice = answer.choices[0]
    return {"text": choice.message.content, "finish": choice.finish_reason, "usage": usage(answer.usage)}


@case
def stream() -> dict[str, Any]:
    chunks = list(chat(messages=say("a b c"), max_tokens=5, stream=True))
    return {
        "text": "".join(c.choices[0].delta.content or "" for c in chunks),
        "finish": chunks[-1].choices[0].finish_reason,
    }


@case
def stream_usage() -> dict[str, Any]:
    chunks = chat(messages=say("a b c"), max_tokens=5, stream=True, stream_options={"include_usage": True})
    found = [usage(c.usage) for c in chunks if getattr(c, "usage", None)]
    return {"usage": found[-1]}


@case
def tools() -> dict[str, Any]:
    first = chat(messages=say("weather in Rome"), tools=[WEATHER], tool_choice="auto")
    message = first.choices[0].message
    call = message.tool_calls[0]
    messages: Any = [*say("weather in Rome"), message]
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
    second = chat(messages=messages, tools=[WEATHER], tool_choice="none", max_tokens=1)
    return {
        "name": call.function.name,
        "arguments": json.loads(call.function.arguments),
        "finish": first.choices[0].finish_reason,
        "then": second.choices[0].message.content,
    }


@case
def tools_stream() -> dict[str, Any]:
    chunks = list(chat(messages=say("weather in Rome"), tools=[WEATHER], stream=True))
    calls = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
    return {
        "name": calls[0].function.name,
        "arguments": json.loads("".join(call.function.arguments or "" for call in calls)),
        "finish": chunks[-1].choices[0].finish_reason,
    }


@case
def structured() -> dict[str, Any]:
    answer = chat(messages=say("New York"), response_format=Place)
    place = Place.model_validate_json(answer.choices[0].message.content)
    return {"name": place.name, "people": place.people}


@case
def json_object() -> dict[str, Any]:
    answer = chat(messages=say("in JSON"), response_format={"type": "json_object"})
    return {"document": json.loads(answer.choices[0].message.content)}


@case
def wrong_key() -> dict[str, Any]:
    return refusal(messages=say("x"), api_key=WRONG_KEY)


@case
def no_model() -> dict[str, Any]:
    return refusal(model=NO_MODEL, messages=say("x"))


@case
def bad_value() -> dict[str, Any]:
    return refusal(messages=say("x"), temperature=9)


@case
def unknown_parameter() -> dict[str, Any]:
    return refusal(messages=say("x"), extra_body={"colour": "red"})


@case
def refused_by_engine() -> dict[str, Any]:
    return refusal(messages=say("x"), max_tokens=100_000)


@case
def no_workers() -> dict[str, Any]:
    return refusal(model=GONE, messages=say("x"))


def listened_to(tries: Tries, **call: Any) -> Any:
    """A call whose HTTP answers `tries` hears."""
    litellm.client_session = httpx.Client(event_hooks={"response": [tries]})
    litellm.in_memory_llm_clients_cache.flush_cache()
    try:
        return chat(**call)
    finally:
        litellm.client_session.close()
        litellm.client_session = None
        litellm.in_memory_llm_clients_cache.flush_cache()


@case
def not_retried() -> dict[str, Any]:
    tries = Tries()
    seen = any_refusal(
        lambda: listened_to(tries, model=UNLOADABLE, messages=say("x"), max_retries=2), Exception
    )
    return {"error": seen["error"], "status": seen["status"], "statuses": tries.statuses}


@case
def rate_limited() -> dict[str, Any]:
    with the_only_request():
        return refusal(messages=say("x"), api_key=PLAN["limited_key"])


@case
def rate_limit_waited() -> dict[str, Any]:
    with the_only_request() as end:
        tries = Tries(end)
        answer = listened_to(
            tries, messages=say("now"), max_tokens=1, api_key=PLAN["limited_key"], max_retries=MOST_RETRIES
        )
    return {**tries.saw(), "text": answer.choices[0].message.content}


@case
def stream_broken_off() -> dict[str, Any]:
    heard: list[str] = []

    def read() -> None:
        for chunk in chat(model=CUT, messages=say("a b c"), max_tokens=5, stream=True):
            heard.append(chunk.choices[0].delta.content or "")

    return {"error": any_refusal(read, Exception)["error"], "text": "".join(heard)}


@case
def disconnect() -> dict[str, Any]:
    chunks = chat(model=SLOW, messages=say("never mind"), max_tokens=1000, stream=True)
    job = next(iter(chunks)).id
    chunks.completion_stream.close()
    return {"job": job}


@case
def timeout() -> dict[str, Any]:
    return refusal(model=SLOW, messages=say("x"), max_tokens=1000, timeout=0.5)


if __name__ == "__main__":
    go()
