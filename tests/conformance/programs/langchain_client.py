"""LangChain's integration of OpenAI: ChatOpenAI and OpenAI, with nothing set but base URL and key."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import openai
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
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
    WRONG_KEY,
    Tries,
    case,
    go,
    refusal,
    the_only_request,
)

warnings.simplefilter("ignore")


class Place(BaseModel):
    name: str
    people: int


@tool
def look_up(echo: str) -> str:
    """Looks a place up."""
    return "sunny"


def chat(model: str = FAST, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(**{"model": model, "base_url": URL, "api_key": KEY, "max_retries": 0, **more})


def usage(message: Any) -> list[int]:
    used = message.usage_metadata
    return [used["input_tokens"], used["output_tokens"], used["total_tokens"]]


@case
def response() -> dict[str, Any]:
    answer = chat(use_responses_api=True, max_tokens=3).invoke("red green blue")
    return {"text": answer.text, "usage": usage(answer)}


@case
def completion() -> dict[str, Any]:
    answer = OpenAI(model=FAST, base_url=URL, api_key=KEY, max_tokens=4).invoke("one two")
    return {"text": answer}


@case
def completion_stream() -> dict[str, Any]:
    pieces = OpenAI(model=FAST, base_url=URL, api_key=KEY, max_tokens=3).stream("p q")
    return {"text": "".join(pieces)}


@case
def chat_whole() -> dict[str, Any]:
    answer = chat(max_tokens=3).invoke([SystemMessage("be"), HumanMessage("red green blue")])
    return {
        "text": answer.content,
        "finish": answer.response_metadata["finish_reason"],
        "usage": usage(answer),
    }


@case
def stream() -> dict[str, Any]:
    chunks = list(chat(max_tokens=5, stream_usage=False).stream("a b c"))
    finish = [c.response_metadata["finish_reason"] for c in chunks if "finish_reason" in c.response_metadata]
    return {
        "text": "".join(c.content for c in chunks),
        "finish": finish[-1],
        "ids": len({c.id for c in chunks}),
    }


@case
def stream_usage() -> dict[str, Any]:
    chunks = list(chat(max_tokens=5, stream_usage=True).stream("a b c"))
    return {"usage": next(usage(c) for c in reversed(chunks) if c.usage_metadata)}


@case
def tools() -> dict[str, Any]:
    able = chat().bind_tools([look_up])
    first = able.invoke("weather in Rome")
    call = first.tool_calls[0]
    told = ToolMessage(look_up.invoke(call["args"]), tool_call_id=call["id"])
    second = chat(max_tokens=1).invoke([HumanMessage("weather in Rome"), first, told])
    return {
        "name": call["name"],
        "arguments": call["args"],
        "finish": first.response_metadata["finish_reason"],
        "then": second.content,
    }


@case
def tools_stream() -> dict[str, Any]:
    whole: Any = None
    for chunk in chat().bind_tools([look_up]).stream("weather in Rome"):
        whole = chunk if whole is None else whole + chunk
    call = whole.tool_calls[0]
    return {
        "name": call["name"],
        "arguments": call["args"],
        "finish": whole.response_metadata["finish_reason"],
    }


@case
def structured() -> dict[str, Any]:
    place = chat().with_structured_output(Place).invoke("New York")
    return {"name": place.name, "people": place.people}


@case
def json_object() -> dict[str, Any]:
    schema = {
        "title": "Echo",
        "description": "d",
        "type": "object",
        "properties": {"echo": {"type": "string"}},
    }
    return {"document": chat().with_structured_output(schema, method="json_mode").invoke("in JSON")}


@case
def many_at_once() -> dict[str, Any]:
    async def all_of_them() -> list[Any]:
        asked = [f"caller {i} says" for i in range(24)]
        answers = await chat(max_tokens=6).abatch(asked)
        return [a.content == f"{text} {text}" for a, text in zip(answers, asked, strict=True)]

    return {"own": sum(asyncio.run(all_of_them()))}


@case
def wrong_key() -> dict[str, Any]:
    return refusal(lambda: chat(api_key=WRONG_KEY).invoke("x"))


@case
def no_model() -> dict[str, Any]:
    return refusal(lambda: chat(NO_MODEL).invoke("x"))


@case
def bad_value() -> dict[str, Any]:
    return refusal(lambda: chat(temperature=9).invoke("x"))


@case
def unknown_parameter() -> dict[str, Any]:
    return refusal(lambda: chat(extra_body={"colour": "red"}).invoke("x"))


@case
def refused_by_engine() -> dict[str, Any]:
    return refusal(lambda: chat(max_tokens=100_000).invoke("x"))


@case
def no_workers() -> dict[str, Any]:
    return refusal(lambda: chat(GONE).invoke("x"))


def listening(tries: Tries) -> openai.DefaultHttpxClient:
    return openai.DefaultHttpxClient(event_hooks={"response": [tries]})


@case
def not_retried() -> dict[str, Any]:
    tries = Tries()
    seen = refusal(lambda: chat(UNLOADABLE, max_retries=2, http_client=listening(tries)).invoke("x"))
    return {**seen, "statuses": tries.statuses}


@case
def rate_limited() -> dict[str, Any]:
    with the_only_request():
        try:
            chat(api_key=PLAN["limited_key"]).invoke("x")
        except openai.RateLimitError as error:
            return {"code": error.code, "type": error.type, "after": error.response.headers["retry-after"]}
    return {}


@case
def rate_limit_waited() -> dict[str, Any]:
    with the_only_request() as end:
        tries = Tries(end)
        how = {"api_key": PLAN["limited_key"], "max_retries": MOST_RETRIES, "http_client": listening(tries)}
        answer = chat(max_tokens=1, **how).invoke("now")
    return {**tries.saw(), "text": answer.content}


@case
def stream_broken_off() -> dict[str, Any]:
    text: list[str] = []

    def read() -> None:
        for chunk in chat(CUT, max_tokens=5).stream("a b c"):
            text.append(chunk.content)

    return {**refusal(read), "text": "".join(text)}


@case
def disconnect() -> dict[str, Any]:
    chunks = chat(SLOW, max_tokens=1000, include_response_headers=True).stream("never mind")
    first = next(chunks)
    chunks.close()
    return {"job": first.response_metadata["headers"]["x-request-id"]}


@case
def timeout() -> dict[str, Any]:
    return refusal(lambda: chat(SLOW, max_tokens=1000, timeout=0.5).invoke("x"))


if __name__ == "__main__":
    go()
