// The official Node client against a model that really answers; as programs/real_engine.py, which has more.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { OpenAI } = createRequire(`${process.argv[2]}/`)("openai");

const { url: baseURL, key, fast: model } = JSON.parse(readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL, apiKey: key, maxRetries: 0 });
const question = "What is the capital of France?";
const messages = [{ role: "user", content: question }];
const chat = (more) =>
  client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 12, ...more });
const respond = (more) =>
  client.responses.create({ model, input: question, temperature: 0, max_output_tokens: 12, ...more });
const all = async (stream) => {
  const found = [];
  for await (const part of stream) found.push(part);
  return found;
};
const schema = {
  type: "object",
  properties: { city: { enum: ["Paris", "Rome"] }, large: { type: "boolean" } },
  required: ["city", "large"],
  additionalProperties: false,
};

const cases = {
  async chat_whole() {
    const [choice] = (await chat()).choices;
    return { knows: choice.message.content.includes("Paris"), finish: choice.finish_reason };
  },
  async stream() {
    const chunks = await all(await chat({ stream: true }));
    const text = chunks.map((c) => c.choices[0].delta.content ?? "").join("");
    return { same: text === (await chat()).choices[0].message.content, ids: new Set(chunks.map((c) => c.id)).size };
  },
  async structured() {
    const response_format = { type: "json_schema", json_schema: { name: "place", schema, strict: true } };
    const answer = await client.chat.completions.parse({
      model, messages, temperature: 0, max_tokens: 200, response_format,
    });
    return { parsed: typeof answer.choices[0].message.parsed.large };
  },
  async response() {
    const answer = await respond();
    return { knows: answer.output_text.includes("Paris"), status: answer.status };
  },
  async response_stream() {
    const events = await all(await respond({ stream: true }));
    return { first: events[0].type, last: events.at(-1).type, in_order: events.every((e, i) => e.sequence_number === i) };
  },
  async too_long() {
    try {
      await chat({ messages: [{ role: "user", content: "word ".repeat(3000) }] });
    } catch (error) {
      return { error: error.constructor.name, status: error.status, code: error.code };
    }
    return { error: null };
  },
  async disconnect() {
    const stream = await chat({ max_tokens: 1500, stream: true, ignore_eos: true });
    for await (const chunk of stream) return { job: chunk.id }; // leaving the loop leaves the stream
  },
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
