"""The official Python client: 2.x and 3.x, each in its own environment."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
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
    refusal,
    say,
    the_only_request,
    usage,
)

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
chat = client.chat.completions.create


class Place(BaseModel):
    name: str
    people: int


def listening(tries: Tries) -> Any:
    return openai.DefaultHttpxClient(event_hooks={"response": [tries]})


@case
def models() -> dict[str, Any]:
    listed = {model.id: model for model in client.models.list()}
    one = client.models.retrieve(FAST)
    return {"listed": FAST in listed, "retrieved": one.id, "object": one.object}


@case
def completion() -> dict[str, Any]:
    answer = client.completions.create(model=FAST, prompt="one two", max_tokens=4)
    choice = answer.choices[0]
    return {"text": choice.text, "finish": choice.finish_reason, "usage": usage(answer.usage)}


@case
def completion_stream() -> dict[str, Any]:
    chunks = list(client.completions.create(model=FAST, prompt="p q", max_tokens=3, stream=True))
    return {
        "text": "".join(c.choices[0].text for c in chunks),
        "usages": sum(c.usage is not None for c in chunks),
    }


@case
def chat_whole() -> dict[str, Any]:
    answer = chat(model=FAST, messages=say("red green blue"), max_tokens=3)
    choice = answer.choices[0]
    return {"text": choice.message.content, "finish": choice.finish_reason, "usage": usage(answer.usage)}


@case
def chat_parts() -> dict[str, Any]:
    parts = [{"type": "text", "text": "red"}, {"type": "text", "text": "green"}]
    messages: Any = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": "ann"},
    ]
    answer = chat(
        model=FAST, messages=messages, max_completion_tokens=2, n=2, temperature=0.2, top_p=0.9, seed=7,
        stop=["never"], logit_bias={"50": -1}, user="u-1", metadata={"a": "b"}, store=False,
        presence_penalty=0.1, frequency_penalty=0.1, logprobs=True, top_logprobs=2,
        extra_body={"top_k": 5},
    )  # fmt: skip
    return {
        "texts": [c.message.content for c in answer.choices],
        "logprobs": answer.choices[0].logprobs is not None,
    }


@case
def stream() -> dict[str, Any]:
    chunks = list(chat(model=FAST, messages=say("a b c"), max_tokens=5, stream=True))
    return {
        "text": "".join(c.choices[0].delta.content or "" for c in chunks),
        "finish": chunks[-1].choices[0].finish_reason,
        "ids": len({(c.id, c.created, c.model) for c in chunks}),
        "usages": sum(c.usage is not None for c in chunks),
    }


@case
def stream_usage() -> dict[str, Any]:
    options: Any = {"include_usage": True}
    chunks = list(chat(model=FAST, messages=say("a b c"), max_tokens=5, stream=True, stream_options=options))
    return {"usage": usage(chunks[-1].usage), "choices": len(chunks[-1].choices)}


@case
def stream_helper() -> dict[str, Any]:
    """The client's own accumulator, which is strict about what chunks look like."""
    with client.chat.completions.stream(model=FAST, messages=say("a b c")) as events:
        kinds = {event.type for event in events}
        final = events.get_final_completion()
    text = final.choices[0].message.content
    return {"begins": (text or "")[:5], "kinds": sorted(kinds & {"chunk", "content.delta", "content.done"})}


@case
def tools() -> dict[str, Any]:
    """A call, and the conversation that goes on with the message exactly as the client gave it back."""
    first = chat(model=FAST, messages=say("weather in Rome"), tools=[WEATHER], tool_choice="auto")
    message = first.choices[0].message
    call = message.tool_calls[0]
    messages: Any = [*say("weather in Rome"), message]
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
    second = chat(model=FAST, messages=messages, tools=[WEATHER], tool_choice="none", max_tokens=1)
    return {
        "name": call.function.name,
        "arguments": json.loads(call.function.arguments),
        "finish": first.choices[0].finish_reason,
        "then": second.choices[0].message.content,
    }


@case
def tools_stream() -> dict[str, Any]:
    chunks = list(chat(model=FAST, messages=say("weather in Rome"), tools=[WEATHER], stream=True))
    calls = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
    return {
        "name": calls[0].function.name,
        "arguments": json.loads("".join(call.function.arguments or "" for call in calls)),
        "finish": chunks[-1].choices[0].finish_reason,
    }


@case
def structured() -> dict[str, Any]:
    answer = client.chat.completions.parse(model=FAST, messages=say("New York"), response_format=Place)
    place = answer.choices[0].message.parsed
    return {"name": place.name, "people": place.people}


@case
def json_object() -> dict[str, Any]:
    answer = chat(model=FAST, messages=say("in JSON"), response_format={"type": "json_object"})
    return {"document": json.loads(answer.choices[0].message.content)}


RESPONSE_TOOL: Any = {"type": "function", "strict": True, **WEATHER["function"]}


def tokens(of: Any) -> list[int]:
    return [of.input_tokens, of.output_tokens, of.total_tokens]


@case
def response() -> dict[str, Any]:
    answer = client.responses.create(model=FAST, input="red green blue", max_output_tokens=3)
    kind, _, job = answer.id.partition("_")
    return {
        "text": answer.output_text, "status": answer.status, "usage": tokens(answer.usage),
        "id": [kind, len(job)], "model": answer.model,
    }  # fmt: skip


@case
def response_stream() -> dict[str, Any]:
    events = list(client.responses.create(model=FAST, input="a b c", max_output_tokens=5, stream=True))
    inside = [event.response for event in events if hasattr(event, "response")]
    return {
        "first": events[0].type, "last": events[-1].type,
        "text": "".join(event.delta for event in events if event.type == "response.output_text.delta"),
        "ids": len({(r.id, r.created_at, r.model) for r in inside}),
        "in_order": [event.sequence_number for event in events] == list(range(len(events))),
        "usage": tokens(inside[-1].usage),
    }  # fmt: skip


@case
def response_helper() -> dict[str, Any]:
    """The client's own accumulator, which is strict about the order of events."""
    with client.responses.stream(model=FAST, input="a b c", max_output_tokens=3) as events:
        kinds = {event.type for event in events}
        final = events.get_final_response()
    return {"text": final.output_text, "deltas": "response.output_text.delta" in kinds}


@case
def response_tools() -> dict[str, Any]:
    """A call, and the conversation that goes on with the items exactly as the client gave them back."""
    asked: Any = say("weather in Rome")
    first = client.responses.create(model=FAST, input=asked, tools=[RESPONSE_TOOL])
    call: Any = first.output[0]
    asked += [*first.output, {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
    second = client.responses.create(
        model=FAST, input=asked, tools=[RESPONSE_TOOL], tool_choice="none", max_output_tokens=1
    )
    return {
        "kind": call.type,
        "name": call.name,
        "arguments": json.loads(call.arguments),
        "then": second.output_text,
    }


@case
def response_structured() -> dict[str, Any]:
    place: Any = client.responses.parse(model=FAST, input="New York", text_format=Place).output_parsed
    return {"name": place.name, "people": place.people}


@case
def response_refused() -> dict[str, Any]:
    return refusal(lambda: client.responses.create(model=FAST, input="x", previous_response_id="resp_1"))


@case
def response_not_found() -> dict[str, Any]:
    answer = client.responses.create(model=FAST, input="x", max_output_tokens=1)
    return refusal(lambda: client.responses.retrieve(answer.id))


@case
def response_broken_off() -> dict[str, Any]:
    text: list[str] = []

    def read() -> None:
        for event in client.responses.create(model=CUT, input="a b c", max_output_tokens=5, stream=True):
            if event.type == "response.output_text.delta":
                text.append(event.delta)

    return {**refusal(read), "text": "".join(text)}


@case
def many_at_once() -> dict[str, Any]:
    async def one(many: openai.AsyncOpenAI, i: int) -> bool:
        words = f"caller {i} says"
        answer = await many.chat.completions.create(
            model=FAST, messages=say(words), max_tokens=6, stream=True
        )
        text = [c.choices[0].delta.content or "" async for c in answer]
        return "".join(text) == f"{words} {words}"

    async def all_of_them() -> list[bool]:
        async with openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0) as many:
            return await asyncio.gather(*(one(many, i) for i in range(24)))

    return {"own": sum(asyncio.run(all_of_them()))}


@case
def request_id() -> dict[str, Any]:
    raw = client.chat.completions.with_raw_response.create(
        model=FAST, messages=say("x"), max_tokens=1, extra_headers={"X-Request-Id": "mine-1"}
    )
    return {"mine": raw.request_id, "parsed": raw.parse().choices[0].message.content}


@case
def wrong_key() -> dict[str, Any]:
    with openai.OpenAI(base_url=URL, api_key=WRONG_KEY, max_retries=0) as other:
        return refusal(lambda: other.models.list())


@case
def no_model() -> dict[str, Any]:
    return refusal(lambda: chat(model=NO_MODEL, messages=say("x")))


@case
def no_model_card() -> dict[str, Any]:
    return refusal(lambda: client.models.retrieve(NO_MODEL))


@case
def bad_value() -> dict[str, Any]:
    return refusal(lambda: chat(model=FAST, messages=say("x"), temperature=9))


@case
def unknown_parameter() -> dict[str, Any]:
    return refusal(lambda: chat(model=FAST, messages=say("x"), extra_body={"colour": "red"}))


@case
def refused_by_engine() -> dict[str, Any]:
    return refusal(lambda: chat(model=FAST, messages=say("x"), max_tokens=100_000))


@case
def refused_stream() -> dict[str, Any]:
    return refusal(lambda: chat(model=FAST, messages=say("x"), temperature=9, stream=True))


@case
def no_workers() -> dict[str, Any]:
    return refusal(lambda: chat(model=GONE, messages=say("x")))


@case
def not_retried() -> dict[str, Any]:
    """A 503 that would come again: x-should-retry says so."""
    tries = Tries()
    with openai.OpenAI(base_url=URL, api_key=KEY, max_retries=2, http_client=listening(tries)) as other:
        seen = refusal(lambda: other.chat.completions.create(model=UNLOADABLE, messages=say("x")))
    return {**seen, "statuses": tries.statuses}


@case
def rate_limited() -> dict[str, Any]:
    with (
        the_only_request(),
        openai.OpenAI(base_url=URL, api_key=PLAN["limited_key"], max_retries=0) as other,
    ):
        try:
            other.chat.completions.create(model=FAST, messages=say("x"))
        except openai.RateLimitError as error:
            return {"code": error.code, "type": error.type, "after": error.response.headers["retry-after"]}
    return {}


@case
def rate_limit_waited() -> dict[str, Any]:
    with the_only_request() as end:
        tries = Tries(end)
        with openai.OpenAI(
            base_url=URL, api_key=PLAN["limited_key"], max_retries=MOST_RETRIES, http_client=listening(tries)
        ) as other:
            answer = other.chat.completions.create(model=FAST, messages=say("now"), max_tokens=1)
    return {**tries.saw(), "text": answer.choices[0].message.content}


@case
def stream_broken_off() -> dict[str, Any]:
    text: list[str] = []

    def read() -> None:
        for chunk in chat(model=CUT, messages=say("a b c"), max_tokens=5, stream=True):
            text.append(chunk.choices[0].delta.content or "")

    return {**refusal(read), "text": "".join(text)}


@case
def disconnect() -> dict[str, Any]:
    with chat(model=SLOW, messages=say("never mind"), max_tokens=1000, stream=True) as chunks:
        job = next(iter(chunks)).id
    return {"job": job}


@case
def timeout() -> dict[str, Any]:
    return refusal(lambda: chat(model=SLOW, messages=say("x"), max_tokens=1000, timeout=0.5))


if __name__ == "__main__":
    go()
