// The official Node client, found in the folder that is the first argument. The plan and the lines it prints
// are as in programs/reporting.py.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { OpenAI } = createRequire(`${process.argv[2]}/`)("openai");

const plan = JSON.parse(readFileSync(0, "utf8"));
const { url: baseURL, key, fast, slow, cut, gone, unloadable } = plan;
const client = new OpenAI({ baseURL, apiKey: key, maxRetries: 0 });
const chat = (body, options) => client.chat.completions.create(body, options);
const say = (content) => [{ role: "user", content }];
const usage = (of) => [of.prompt_tokens, of.completion_tokens, of.total_tokens];
const all = async (stream) => {
  const found = [];
  for await (const chunk of stream) found.push(chunk);
  return found;
};
const respond = (body) => client.responses.create(body);
const tokens = (of) => [of.input_tokens, of.output_tokens, of.total_tokens];
const place = {
  type: "object",
  properties: { name: { type: "string" }, people: { type: "integer" } },
  required: ["name", "people"],
  additionalProperties: false,
};
const weather = {
  type: "function",
  function: {
    name: "look_up",
    parameters: { type: "object", properties: { echo: { type: "string" } }, required: ["echo"] },
  },
};

async function refusal(call) {
  try {
    await call();
  } catch (error) {
    return {
      error: error.constructor.name,
      status: error.status ?? null,
      code: error.code ?? null,
      param: error.param ?? null,
    };
  }
  return { error: null };
}

// The limited key's one request is under way while `then` runs; what it is given ends that request.
async function withTheOnlyRequest(then) {
  const other = new OpenAI({ baseURL, apiKey: plan.limited_key, maxRetries: 5 });
  const held = await other.chat.completions.create({
    model: slow, messages: say("hold on"), max_tokens: 1000, stream: true,
  });
  await held[Symbol.asyncIterator]().next();
  try {
    return await then(() => held.controller.abort());
  } finally {
    held.controller.abort();
  }
}

// A fetch that notes each try; `refused` is called at the first 429.
function listening(tries, refused = () => {}) {
  return async (...call) => {
    const answer = await fetch(...call);
    tries.push({ status: answer.status, at: performance.now() });
    if (answer.status === 429) refused();
    return answer;
  };
}

const cases = {
  async models() {
    const listed = (await all(client.models.list())).map((model) => model.id);
    const one = await client.models.retrieve(fast);
    return { listed: listed.includes(fast), retrieved: one.id, object: one.object };
  },
  async completion() {
    const answer = await client.completions.create({ model: fast, prompt: "one two", max_tokens: 4 });
    const [choice] = answer.choices;
    return { text: choice.text, finish: choice.finish_reason, usage: usage(answer.usage) };
  },
  async completion_stream() {
    const body = { model: fast, prompt: "p q", max_tokens: 3, stream: true };
    const chunks = await all(await client.completions.create(body));
    return {
      text: chunks.map((c) => c.choices[0].text).join(""),
      usages: chunks.filter((c) => c.usage).length,
    };
  },
  async chat_whole() {
    const answer = await chat({ model: fast, messages: say("red green blue"), max_tokens: 3 });
    const [choice] = answer.choices;
    return { text: choice.message.content, finish: choice.finish_reason, usage: usage(answer.usage) };
  },
  async stream() {
    const chunks = await all(await chat({ model: fast, messages: say("a b c"), max_tokens: 5, stream: true }));
    return {
      text: chunks.map((c) => c.choices[0].delta.content ?? "").join(""),
      finish: chunks.at(-1).choices[0].finish_reason,
      ids: new Set(chunks.map((c) => `${c.id} ${c.created} ${c.model}`)).size,
      usages: chunks.filter((c) => c.usage).length,
    };
  },
  async stream_usage() {
    const options = { stream: true, stream_options: { include_usage: true } };
    const chunks = await all(await chat({ model: fast, messages: say("a b c"), max_tokens: 5, ...options }));
    return { usage: usage(chunks.at(-1).usage), choices: chunks.at(-1).choices.length };
  },
  async tools() {
    const messages = say("weather in Rome");
    const first = await chat({ model: fast, messages, tools: [weather], tool_choice: "auto" });
    const [choice] = first.choices;
    const [call] = choice.message.tool_calls;
    messages.push(choice.message, { role: "tool", tool_call_id: call.id, content: "sunny" });
    const second = await chat({ model: fast, messages, tools: [weather], tool_choice: "none", max_tokens: 1 });
    return {
      name: call.function.name,
      arguments: JSON.parse(call.function.arguments),
      finish: choice.finish_reason,
      then: second.choices[0].message.content,
    };
  },
  async tools_stream() {
    const body = { model: fast, messages: say("weather in Rome"), tools: [weather], stream: true };
    const chunks = await all(await chat(body));
    const calls = chunks.flatMap((c) => c.choices[0].delta.tool_calls ?? []);
    return {
      name: calls[0].function.name,
      arguments: JSON.parse(calls.map((call) => call.function.arguments ?? "").join("")),
      finish: chunks.at(-1).choices[0].finish_reason,
    };
  },
  async structured() {
    const answer = await client.chat.completions.parse({
      model: fast,
      messages: say("New York"),
      response_format: { type: "json_schema", json_schema: { name: "place", schema: place, strict: true } },
    });
    return JSON.parse(answer.choices[0].message.content);
  },
  async json_object() {
    const body = { model: fast, messages: say("in JSON"), response_format: { type: "json_object" } };
    return { document: JSON.parse((await chat(body)).choices[0].message.content) };
  },
  async response() {
    const answer = await respond({ model: fast, input: "red green blue", max_output_tokens: 3 });
    const [kind, job] = answer.id.split("_");
    return {
      text: answer.output_text,
      status: answer.status,
      usage: tokens(answer.usage),
      id: [kind, job.length],
      model: answer.model,
    };
  },
  async response_stream() {
    const events = await all(await respond({ model: fast, input: "a b c", max_output_tokens: 5, stream: true }));
    const inside = events.filter((e) => e.response).map((e) => e.response);
    return {
      first: events[0].type,
      last: events.at(-1).type,
      text: events.filter((e) => e.type === "response.output_text.delta").map((e) => e.delta).join(""),
      ids: new Set(inside.map((r) => `${r.id} ${r.created_at} ${r.model}`)).size,
      in_order: events.every((e, i) => e.sequence_number === i),
      usage: tokens(inside.at(-1).usage),
    };
  },
  async response_helper() {
    const kinds = new Set();
    const stream = client.responses.stream({ model: fast, input: "a b c", max_output_tokens: 3 });
    for await (const event of stream) kinds.add(event.type);
    const final = await stream.finalResponse();
    return { text: final.output_text, deltas: kinds.has("response.output_text.delta") };
  },
  async response_tools() {
    const input = say("weather in Rome");
    const tools = [{ type: "function", strict: true, ...weather.function }];
    const first = await respond({ model: fast, input, tools });
    const [call] = first.output;
    input.push(...first.output, { type: "function_call_output", call_id: call.call_id, output: "sunny" });
    const second = await respond({ model: fast, input, tools, tool_choice: "none", max_output_tokens: 1 });
    return {
      kind: call.type,
      name: call.name,
      arguments: JSON.parse(call.arguments),
      then: second.output_text,
    };
  },
  async response_structured() {
    const format = { type: "json_schema", name: "place", schema: place, strict: true };
    return (await client.responses.parse({ model: fast, input: "New York", text: { format } })).output_parsed;
  },
  response_refused: () => refusal(() => respond({ model: fast, input: "x", previous_response_id: "resp_1" })),
  async response_not_found() {
    const answer = await respond({ model: fast, input: "x", max_output_tokens: 1 });
    return refusal(() => client.responses.retrieve(answer.id));
  },
  async response_broken_off() {
    let text = "";
    const seen = await refusal(async () => {
      const stream = await respond({ model: cut, input: "a b c", max_output_tokens: 5, stream: true });
      for await (const event of stream) if (event.type === "response.output_text.delta") text += event.delta;
    });
    return { ...seen, text };
  },
  async many_at_once() {
    const one = async (_, i) => {
      const words = `caller ${i} says`;
      const chunks = await all(await chat({ model: fast, messages: say(words), max_tokens: 6, stream: true }));
      return chunks.map((c) => c.choices[0].delta.content ?? "").join("") === `${words} ${words}`;
    };
    return { own: (await Promise.all(Array.from({ length: 24 }, one))).filter(Boolean).length };
  },
  async request_id() {
    const body = { model: fast, messages: say("x"), max_tokens: 1 };
    const answer = await chat(body, { headers: { "X-Request-Id": "mine-1" } });
    return { mine: answer._request_id, parsed: answer.choices[0].message.content };
  },
  async wrong_key() {
    const other = new OpenAI({ baseURL, apiKey: "sk-gt-wrong", maxRetries: 0 });
    return refusal(() => other.models.list());
  },
  no_model: () => refusal(() => chat({ model: "no-such-model", messages: say("x") })),
  no_model_card: () => refusal(() => client.models.retrieve("no-such-model")),
  bad_value: () => refusal(() => chat({ model: fast, messages: say("x"), temperature: 9 })),
  unknown_parameter: () => refusal(() => chat({ model: fast, messages: say("x"), colour: "red" })),
  refused_by_engine: () => refusal(() => chat({ model: fast, messages: say("x"), max_tokens: 100000 })),
  refused_stream: () =>
    refusal(() => chat({ model: fast, messages: say("x"), temperature: 9, stream: true })),
  no_workers: () => refusal(() => chat({ model: gone, messages: say("x") })),
  async not_retried() {
    const tries = [];
    const other = new OpenAI({ baseURL, apiKey: key, maxRetries: 2, fetch: listening(tries) });
    const seen = await refusal(() => other.chat.completions.create({ model: unloadable, messages: say("x") }));
    return { ...seen, statuses: tries.map((t) => t.status) };
  },
  rate_limited: () =>
    withTheOnlyRequest(async () => {
      const other = new OpenAI({ baseURL, apiKey: plan.limited_key, maxRetries: 0 });
      try {
        await other.chat.completions.create({ model: fast, messages: say("x") });
      } catch (error) {
        if (!(error instanceof OpenAI.RateLimitError)) throw error;
        return { code: error.code, type: error.type, after: error.headers.get("retry-after") };
      }
      return {};
    }),
  rate_limit_waited: () =>
    withTheOnlyRequest(async (end) => {
      const tries = [];
      const how = { apiKey: plan.limited_key, maxRetries: 5, fetch: listening(tries, end) };
      const other = new OpenAI({ baseURL, ...how });
      const answer = await other.chat.completions.create({ model: fast, messages: say("now"), max_tokens: 1 });
      return {
        first: tries[0].status,
        last: tries.at(-1).status,
        repeated: tries.length > 1,
        // A timer of Node's may be a millisecond early.
        waited: tries.slice(1).every((t, i) => t.at - tries[i].at >= 998),
        text: answer.choices[0].message.content,
      };
    }),
  async stream_broken_off() {
    let text = "";
    const seen = await refusal(async () => {
      const body = { model: cut, messages: say("a b c"), max_tokens: 5, stream: true };
      for await (const chunk of await chat(body)) text += chunk.choices[0].delta.content ?? "";
    });
    return { ...seen, text };
  },
  async disconnect() {
    const stream = await chat({ model: slow, messages: say("never mind"), max_tokens: 1000, stream: true });
    for await (const chunk of stream) return { job: chunk.id }; // leaving the loop leaves the stream
  },
  timeout: () =>
    refusal(() => chat({ model: slow, messages: say("x"), max_tokens: 1000 }, { timeout: 500 })),
};

for (const [name, run] of Object.entries(cases)) {
  let line;
  try {
    line = { case: name, saw: await run() };
  } catch (error) {
    line = { case: name, raised: String(error.stack) };
  }
  console.log(JSON.stringify(line));
}
