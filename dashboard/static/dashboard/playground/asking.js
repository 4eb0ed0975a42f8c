// One request to the site: the bytes of its answer as they come, parsed, and how to end it.

const ABORT_AFTER_MS = 3000;

/** The refusal of an answer: what the API says, or what the browser sees. */
export class Refused extends Error {
  constructor(message, code, requestId) {
    super(message);
    this.code = code;
    this.requestId = requestId;
  }
}

/** The error in a body of OpenAI's shape; null if there is none. */
function refusalIn(body, requestId) {
  const error = body && typeof body === "object" ? body.error : null;
  return error ? new Refused(String(error.message), String(error.code ?? ""), requestId) : null;
}

/** Fetch JSON from a door of this page. Throws Refused. */
export async function door(url, csrf, method = "GET") {
  const answer = await fetch(url, { method, headers: { "X-CSRFToken": csrf, Accept: "application/json" } });
  const body = await answer.json().catch(() => null);
  const requestId = answer.headers.get("x-request-id") ?? "";
  if (!answer.ok || body === null) {
    throw refusalIn(body, requestId) ?? noSense(answer.status, requestId);
  }
  return body;
}

function noSense(status, requestId) {
  const hint = status === 403 ? "the session may have ended: reload this page" : "see the server's log";
  return new Refused(`The site answered with status ${status}: ${hint}.`, `http_${status}`, requestId);
}

/** A request that is under way. `on` has: began(ids), waiting(), raw(text), event(object). */
export class Asking {
  constructor(csrf, jobUrl) {
    this.csrf = csrf;
    this.jobUrl = jobUrl;
    this.job = "";
    this.requestId = "";
    this.stopped = false;
    this.abort = new AbortController();
  }

  /** Resolves when the answer is complete. Throws Refused, or an AbortError after `stop`. */
  async send(url, body, on) {
    const answer = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRFToken": this.csrf },
      body: JSON.stringify(body),
      signal: this.abort.signal,
    });
    this.job = answer.headers.get("x-job-id") ?? "";
    this.requestId = answer.headers.get("x-request-id") ?? "";
    on.began(this);
    const kind = answer.headers.get("content-type") ?? "";
    if (answer.ok && kind.startsWith("text/event-stream")) {
      await this.#follow(answer, on);
      return;
    }
    const text = await answer.text();
    const isJson = kind.startsWith("application/json");
    on.raw(isJson ? text : `HTTP ${answer.status}`);
    const whole = isJson ? JSON.parse(text) : null;
    if (!answer.ok || whole === null) {
      throw refusalIn(whole, this.requestId) ?? noSense(answer.status, this.requestId);
    }
    on.event(whole);
  }

  async #follow(answer, on) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    let complete = false;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      on.raw(value);
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith(":")) on.waiting();
        if (!line.startsWith("data: ")) continue;
        const data = line.slice(6).trim();
        if (data === "[DONE]") {
          complete = true;
          continue;
        }
        const event = JSON.parse(data);
        const refused = refusalIn(event, this.requestId);
        if (refused) throw refused;
        on.event(event);
      }
    }
    if (!complete) throw new Refused("The stream broke off before its end.", "stream_cut", this.requestId);
  }

  /** End the job: by its id where it is known, and by leaving. */
  async stop() {
    this.stopped = true;
    if (!this.job) {
      this.abort.abort();
      return;
    }
    const leaving = setTimeout(() => this.abort.abort(), ABORT_AFTER_MS);
    try {
      await door(this.jobUrl(this.job), this.csrf, "DELETE");
    } catch {
      clearTimeout(leaving);
      this.abort.abort();
    }
  }
}
