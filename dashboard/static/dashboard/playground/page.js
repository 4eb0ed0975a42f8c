// The playground: what is asked, in which order, and what is shown of it.

import { Asking, door } from "./asking.js";
import { curl, python } from "./code.js";
import { Answer, asked } from "./message.js";
import { Models } from "./models.js";

const MOST_RAW = 300_000; // characters of a raw answer that are shown
const at = (id) => document.getElementById(id);
const options = JSON.parse(at("options").textContent);
const csrf = at("playground").dataset.csrf;
const settings = at("settings");
const log = at("log");
const jobUrl = (job) => options.job.replace(options.anyJob, job);

let turns = []; // {chat, text, said, article, answer}: what was asked, and what came of it
let running = null;

// -- the request -----------------------------------------------------------------------------------------

function isChat() {
  return settings.elements.kind.value === "chat";
}

function number(name) {
  const text = settings.elements[name].value.trim();
  return text === "" || Number.isNaN(Number(text)) ? undefined : Number(text);
}

/** The body of a request that asks for `text`, in a chat after the turns before it. */
function bodyFor(text) {
  const lines = settings.elements.stop.value.split("\n").filter((line) => line !== "");
  const stop = lines.map((line) => line.replaceAll("\\n", "\n")).slice(0, 4);
  const stream = settings.elements.stream.checked;
  const body = { model: settings.elements.model.value };
  if (isChat()) {
    const system = settings.elements.system.value.trim();
    body.messages = system ? [{ role: "system", content: system }] : [];
    for (const turn of turns.filter((turn) => turn.chat)) {
      body.messages.push({ role: "user", content: turn.text });
      if (turn.said) body.messages.push({ role: "assistant", content: turn.said });
    }
    body.messages.push({ role: "user", content: text });
  } else {
    body.prompt = text;
  }
  for (const name of ["max_tokens", "temperature", "top_p", "seed"]) {
    if (number(name) !== undefined) body[name] = number(name);
  }
  if (stop.length) body.stop = stop;
  if (stream) Object.assign(body, { stream: true, stream_options: { include_usage: true } });
  return body;
}

function path() {
  return isChat() ? "/v1/chat/completions" : "/v1/completions";
}

function showCode(text = at("prompt").value || "Hello!") {
  if (running) return;
  const body = bodyFor(text);
  at("curl").textContent = curl(location.origin, path(), body);
  at("python").textContent = python(location.origin, path(), body);
}

// -- one turn --------------------------------------------------------------------------------------------

async function run(text) {
  const chat = isChat();
  const body = bodyFor(text);
  showCode(text);
  at("request").textContent = `POST ${path()}\n\n${JSON.stringify(body, null, 2)}`;
  at("response").textContent = "";
  at("empty").hidden = true;
  const turn = { chat, text, said: "", article: asked(text), answer: new Answer(body.model, chat ? "" : text) };
  turns.push(turn);
  if (chat) log.append(turn.article);
  log.append(turn.answer.article);
  log.scrollTop = log.scrollHeight;
  const asking = new Asking(csrf, jobUrl);
  running = asking;
  controls();
  say("Sent");
  const seen = { begun: performance.now(), first: 0, last: 0, usage: null };
  try {
    await asking.send(options.ask + path().slice(1), body, listener(turn, seen));
    say(seen.usage ? `Done: ${seen.usage.completion_tokens} tokens` : "Done");
  } catch (error) {
    if (asking.stopped) {
      say("Stopped");
    } else {
      turn.answer.refuse(error, hintFor(error));
      say(`Failed: ${error.message}`);
    }
  }
  running = null;
  turn.answer.over();
  controls();
  figures(turn, asking, seen, null);
  if (asking.job) await record(turn, asking, seen);
}

function listener(turn, seen) {
  const raw = at("response");
  return {
    began: () => say("Answering"),
    waiting: () => { if (!seen.first) say("Waiting for a free slot, or for the model to be loaded"); },
    raw: (text) => { if (raw.textContent.length < MOST_RAW) raw.append(text); },
    event: (event) => {
      if (event.usage) seen.usage = event.usage;
      const choice = event.choices?.[0];
      if (!choice) return;
      const part = choice.delta ?? choice.message ?? choice;
      const thought = part.reasoning_content ?? part.reasoning ?? "";
      const text = part.content ?? part.text ?? "";
      const called = part.tool_calls ? JSON.stringify(part.tool_calls) : "";
      if (!(text || thought || called)) return;
      if (!seen.first) say("Answering");
      seen.last = performance.now();
      seen.first ||= seen.last;
      const below = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
      if (thought) turn.answer.think(thought);
      turn.said += text + called;
      turn.answer.add(text + called);
      if (below) log.scrollTop = log.scrollHeight;
    },
  };
}

function hintFor(error) {
  if (/chat.template/i.test(error.message)) {
    return "This model was not made for chats: choose “Plain completion”.";
  }
  return error.code === "context_length_exceeded" ? "Clear the conversation, or ask for fewer tokens." : "";
}

// -- figures ---------------------------------------------------------------------------------------------

async function record(turn, asking, seen) {
  for (let tries = 0; tries < 10; tries += 1) {
    const found = await door(jobUrl(asking.job), csrf).catch(() => null);
    figures(turn, asking, seen, found);
    if (found && !["pending", "running"].includes(found.state)) return;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

function figures(turn, asking, seen, found) {
  const streamed = seen.last > seen.first;
  const timings = found?.timings_ms;
  const whole = timings?.total - timings?.first_token;
  const seconds = (streamed ? seen.last - seen.first : whole) / 1000;
  const usage = seen.usage ?? found?.usage;
  const answered = usage?.completion_tokens ? timings?.first_token : 0; // a refusal has no token
  const first = streamed ? seen.first - seen.begun : answered;
  const rate = usage?.completion_tokens > 1 && seconds > 0 ? (usage.completion_tokens - 1) / seconds : 0;
  const job = asking.job && { text: asking.job };
  if (job && options.record) job.href = options.record.replace(options.anyJob, asking.job);
  turn.answer.show([
    ["first token", first > 0 ? `${Math.round(first)} ms` : ""],
    ["speed", rate ? `${rate.toFixed(1)} tokens/s` : ""],
    ["tokens in", usage ? String(usage.prompt_tokens) : ""],
    ["out", usage ? String(usage.completion_tokens) : ""],
    ["node", found?.node],
    ["state", found?.state],
    ["job", job],
  ]);
}

// -- controls --------------------------------------------------------------------------------------------

function say(text) {
  at("status").textContent = text;
}

function controls() {
  at("send").hidden = running !== null;
  at("stop").hidden = running === null;
  at("retry").disabled = running !== null || turns.length === 0;
  at("clear").disabled = running !== null || turns.length === 0;
}

function send() {
  const text = at("prompt").value;
  if (running || !settings.reportValidity()) return;
  if (!settings.elements.model.value) return say("There is no model to ask yet.");
  if (!text.trim()) return at("prompt").focus();
  if (isChat()) at("prompt").value = "";
  run(text);
  at("stop").focus();
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
});
at("stop").addEventListener("click", () => {
  say("Stopping");
  running?.stop();
  at("prompt").focus();
});
at("retry").addEventListener("click", () => {
  const last = turns.pop();
  last.article.remove();
  last.answer.article.remove();
  run(last.text);
});
at("clear").addEventListener("click", () => {
  turns = [];
  log.querySelectorAll("article").forEach((article) => article.remove());
  at("empty").hidden = false;
  ["request", "response"].forEach((id) => { at(id).textContent = ""; });
  say("");
  controls();
  showCode();
  at("prompt").focus();
});
settings.addEventListener("submit", (event) => event.preventDefault());
settings.addEventListener("change", () => {
  at("system-field").hidden = !isChat();
  at("prompt-label").textContent = isChat() ? "Message" : "Text to go on from";
  showCode();
});
settings.addEventListener("input", () => showCode());
at("prompt").addEventListener("input", () => showCode());
if (window.matchMedia("(max-width: 1000px)").matches) at("parameters").open = false;
new Models(options.models, csrf, {
  select: at("model"), standing: at("standing"), nothing: at("nothing"), broken: at("broken"),
});
showCode();
