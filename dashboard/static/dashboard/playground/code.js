// The same request as programs would send it.

const KEY = "GPUTORRENT_API_KEY";

/** A word of POSIX sh. */
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

export function curl(base, path, body) {
  const words = [
    `curl ${quoted(base + path)}`,
    `-H "Authorization: Bearer $${KEY}"`,
    `-H 'Content-Type: application/json'`,
    `-d ${quoted(JSON.stringify(body, null, 2))}`,
  ];
  if (body.stream) words[0] = words[0].replace("curl", "curl -N");
  return words.join(" \\\n  ");
}

/** A literal of Python. */
function literal(value, indent = "    ") {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) {
    if (value.every((item) => typeof item !== "object")) return `[${value.map((v) => literal(v)).join(", ")}]`;
    const inner = `${indent}    `;
    return `[\n${value.map((v) => `${inner}${literal(v, inner)},\n`).join("")}${indent}]`;
  }
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([k, v]) => `${literal(k)}: ${literal(v, indent)}`).join(", ")}}`;
  }
  // JSON's strings are Python's, but for characters beyond the first plane, which stay as they are.
  return JSON.stringify(value);
}

export function python(base, path, body) {
  const chat = path.includes("chat");
  const lines = [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(`${base}/v1`)}, api_key=os.environ["${KEY}"])`,
    `answer = client.${chat ? "chat.completions" : "completions"}.create(`,
    ...Object.entries(body).map(([name, value]) => `    ${name}=${literal(value)},`),
    ")",
  ];
  const text = chat ? "message.content" : "text";
  if (!body.stream) return [...lines, `print(answer.choices[0].${text})`].join("\n");
  const piece = chat ? "delta.content" : "text";
  return [
    ...lines,
    "for chunk in answer:",
    "    if chunk.choices:",
    `        print(chunk.choices[0].${piece} or "", end="", flush=True)`,
  ].join("\n");
}
