"""The one table of everything the API refuses with: code, HTTP status, OpenAI's `type`, and what it means.

`docs/errors.md` is generated from it (``manage.py error_codes``). A stream that cannot go on carries the same
codes in its last event, where there is no status any more.
"""

from __future__ import annotations

from typing import Final, NamedTuple

INVALID: Final = "invalid_request_error"
UNAVAILABLE: Final = "service_unavailable_error"


class Code(NamedTuple):
    """One row. `retry` False: the answer carries ``x-should-retry: false``, since the official clients would
    repeat a 429 or 5xx by themselves and a repetition would be in vain or do the same work twice."""

    code: str
    status: int
    type: str
    when: str
    remedy: str
    retry: bool = True
    param: str | None = None  # where it is always the same one


TABLE: Final[tuple[Code, ...]] = (
    # -- what was sent --------------------------------------------------------------------------------
    Code(
        "invalid_json", 400, INVALID,
        "The body is not JSON: cut off, not UTF-8, with NaN, a lone surrogate, or something after its end.",
        "Send one JSON object in UTF-8.",
    ),
    Code(
        "invalid_value", 400, INVALID,
        "A parameter has the wrong type, is out of range, too long, or does not go with another.",
        "Correct what `param` names; the message says what is expected.",
    ),
    Code(
        "missing_required_parameter", 400, INVALID,
        "A parameter without which the request means nothing is not there.",
        "Send what `param` names.",
    ),
    Code(
        "unknown_parameter", 400, INVALID,
        "A parameter is neither OpenAI's nor one of vLLM's that are allowed here. Passed on, it would be "
        "ignored silently.",
        "Remove it or correct its spelling. The operator can allow more (`GPUTORRENT_EXTRA_PARAMETERS`).",
    ),
    Code(
        "unsupported_parameter", 400, INVALID,
        "A parameter is known and not offered: no engine here honours it, or it would give a caller power "
        "over a node.",
        "Remove it; the message says why and what to use instead.",
    ),
    Code(
        "duplicate_parameter", 400, INVALID,
        "A parameter stands twice in the body.",
        "Send it once.",
    ),
    Code(
        "nested_too_deeply", 400, INVALID,
        "Lists and objects in the body are nested deeper than 64 levels.",
        "Flatten the schema or the message.",
    ),
    Code(
        "url_not_allowed", 400, INVALID,
        "An image, a sound or a video is given by a URL that a node would have to fetch.",
        "Send the data itself (`data:image/png;base64,...`). The operator can allow http and https "
        "(`GPUTORRENT_ALLOW_URLS=1`).",
    ),
    Code(
        "context_length_exceeded", 400, INVALID,
        "Prompt and `max_tokens` together are longer than the model's context. The engine said so, having "
        "counted.",
        "Shorten the prompt or lower `max_tokens`; `GET /v1/models` tells each model's `max_model_len`.",
    ),
    Code(
        "cancelled", 400, INVALID,
        "The job was ended by `DELETE /jobs/{id}`, or by an operator.",
        "Nothing, if that was meant. Send it again otherwise.",
        retry=False,
    ),
    Code(
        "rejected_by_engine", 400, INVALID,
        "The engine refused the request; its own words are in the message and its 4xx in the status.",
        "Correct the request as the message says.",
    ),
    Code(
        "bad_request", 400, INVALID,
        "The request was refused before any path looked at it, for example for its Host header.",
        "Use the address that the operator gave you.",
    ),
    Code(
        "request_too_large", 413, INVALID,
        "The body is larger than `GPUTORRENT_MAX_BODY_BYTES` (10 MiB).",
        "Send less in one request.",
    ),
    Code(
        "unsupported_media_type", 415, INVALID,
        "`Content-Type` names something other than JSON (other than a form, for a file), or "
        "`Content-Encoding` a compression.",
        "Send `Content-Type: application/json`, uncompressed; files as `multipart/form-data`.",
    ),
    Code(
        "file_too_large", 413, INVALID,
        "The file is larger than `GPUTORRENT_FILE_BYTES` (100 MiB).",
        "Split it into several batches.",
        param="file",
    ),
    Code(
        "file_storage_full", 400, INVALID,
        "The files of the key, results included, are together larger than `GPUTORRENT_FILES_PER_KEY_BYTES` "
        "(1 GiB).",
        "Delete files that are done with.",
        param="file",
    ),
    Code(
        "file_in_use", 400, INVALID,
        "A batch that has not ended reads the file.",
        "Cancel the batch, or wait for its end.",
    ),
    Code(
        "batch_has_ended", 400, INVALID,
        "The batch has ended, or is about to: there is nothing to cancel.",
        "Nothing.",
    ),
    # -- who asks, and what for -----------------------------------------------------------------------
    Code(
        "invalid_api_key", 401, "authentication_error",
        "There is no API key, or it is unknown, expired or revoked.",
        "Send `Authorization: Bearer KEY` with a valid key.",
    ),
    Code(
        "insufficient_permissions", 403, "permission_error",
        "The key, or the session, may not do this.",
        "Use a staff key, or log in to the admin.",
    ),
    Code(
        "model_not_found", 404, INVALID,
        "No node offers a model of that name.",
        "Choose one of `GET /v1/models`.",
        param="model",
    ),
    Code(
        "job_not_found", 404, INVALID,
        "There is no such job, it is not yours, or its record has expired.",
        "Check the id.",
    ),
    Code(
        "response_not_found", 404, INVALID,
        "Responses are not kept, so none can be looked up, deleted or cancelled by its id.",
        "Keep what you need of the answer. `GET /jobs/{id}` has the request's record; leaving a stream "
        "ends it, as `DELETE /jobs/{id}` does.",
    ),
    Code(
        "file_not_found", 404, INVALID,
        "There is no such file, it is not yours, or its time is over.",
        "Check the id; `GET /v1/files` lists what there is.",
    ),
    Code(
        "batch_not_found", 404, INVALID,
        "There is no such batch, it is not yours, or its record has expired.",
        "Check the id; `GET /v1/batches` lists what there is.",
    ),
    Code(
        "node_not_found", 404, INVALID,
        "No node has that name or id.",
        "Choose one of `GET /workers`.",
    ),
    Code(
        "model_not_offered", 404, INVALID,
        "The node does not offer that model.",
        "Offer it with the agent's `--offer`.",
    ),
    Code(
        "model_does_not_fit", 409, INVALID,
        "The node can never load that model; the message says why. Only when steering nodes.",
        "Choose another node.",
        retry=False,
    ),
    Code(
        "not_found", 404, INVALID,
        "There is no such thing.",
        "Check the id.",
    ),
    Code(
        "unknown_url", 404, INVALID,
        "There is no such path. Paths have no trailing slash and no double one.",
        "Check the base URL: it ends with `/v1`.",
    ),
    Code(
        "method_not_allowed", 405, INVALID,
        "The path knows other methods; they are in the `Allow` header.",
        "Use one of those.",
    ),
    Code(
        "request_held_off", 422, INVALID,
        "This very request has brought down several engines. It is refused for `GPUTORRENT_HOLD_OFF_SECONDS` "
        "(600 s).",
        "Change the request, and tell the operator.",
        retry=False,
    ),
    Code(
        "idempotency_key_reused", 422, INVALID,
        "The `Idempotency-Key` was sent with another request within 24 hours.",
        "Use a new key for each request; the same only to repeat one.",
        param="idempotency-key",
    ),
    # -- what the cluster can do now ------------------------------------------------------------------
    Code(
        "rate_limit_exceeded", 429, "rate_limit_error",
        "The key has reached a limit: requests or tokens a minute, or requests at once.",
        "Wait as `Retry-After` says; `x-ratelimit-*` tell what is left. Without `Retry-After` the request is "
        "larger than the limit, and waiting is in vain.",
    ),
    Code(
        "insufficient_quota", 429, "insufficient_quota",
        "The key's budget of tokens for the day or the month is used up.",
        "Wait for the next day or month (UTC), or ask the operator for more.",
    ),
    Code(
        "too_many_batches", 429, "rate_limit_error",
        "The key has `GPUTORRENT_BATCHES_PER_KEY` (10) batches that have not ended.",
        "Wait until one has ended, or cancel one.",
        retry=False,
    ),
    Code(
        "queue_full", 429, "rate_limit_error",
        "Too many requests wait for the model already.",
        "Try again after `Retry-After` seconds.",
    ),
    Code(
        "queue_timeout", 503, UNAVAILABLE,
        "No slot came free within `GPUTORRENT_QUEUE_SECONDS` (60 s).",
        "Try again after `Retry-After` seconds.",
    ),
    Code(
        "no_workers", 503, UNAVAILABLE,
        "Nodes offered the model, but none of them is live now.",
        "Try again after `Retry-After` seconds, or tell the operator.",
    ),
    Code(
        "model_loading", 503, UNAVAILABLE,
        "The model was not loaded within `GPUTORRENT_LOAD_WAIT_SECONDS` (900 s).",
        "Try again after `Retry-After` seconds.",
    ),
    Code(
        "model_unavailable", 503, UNAVAILABLE,
        "The model fits on no node, or could not be loaded; the message says why.",
        "Choose another model, or tell the operator.",
        retry=False,
    ),
    Code(
        "ledger_unavailable", 503, UNAVAILABLE,
        "The coordinator's database is away, or does not answer in time. Completions do not need it.",
        "Try again after `Retry-After`.",
    ),
    Code(
        "broker_unavailable", 503, UNAVAILABLE,
        "Redis does not answer, so nothing can be placed.",
        "Try again after `Retry-After` seconds.",
    ),
    Code(
        "no_gateway", 503, UNAVAILABLE,
        "The web process was started without its gateway. A mistake in the set-up.",
        "The operator starts it with `make up`.",
        retry=False,
    ),
    # -- what went wrong ------------------------------------------------------------------------------
    Code(
        "upstream_failed", 502, "upstream_error",
        "Every attempt on the nodes failed, or a stream broke off after its first token.",
        "Try again; if it stays, tell the operator the request id.",
    ),
    Code(
        "first_token_timeout", 504, "timeout_error",
        "The request was placed, and no token came within `GPUTORRENT_FIRST_TOKEN_SECONDS` (120 s).",
        "Shorten the prompt. Repeating it at once would make the same work again.",
        retry=False,
    ),
    Code(
        "internal_error", 500, "server_error",
        "A mistake in this program; the log has its traceback beside the request id.",
        "Tell the operator the request id. What was asked may have been done.",
        retry=False,
    ),
)  # fmt: skip

CODES: Final[dict[str, Code]] = {row.code: row for row in TABLE}


def document() -> str:
    """The table as the page `docs/errors.md`."""
    lines = [
        "# Errors",
        "",
        "Generated from `api/error_codes.py` by `manage.py error_codes`; change it there.",
        "",
        "Every answer that is not a success, under `/v1` and on callers' other paths, has OpenAI's shape:",
        "",
        "```json",
        '{"error": {"message": "...", "type": "invalid_request_error", "param": "temperature", '
        '"code": "invalid_value"}}',
        "```",
        "",
        "`code` is always one of the strings below and does not change; the message is for people. `param` "
        "names the parameter, as a path where it lies inside another (`messages[0].content`), or is null. A "
        "stream that cannot go on after its headers were sent ends with one `data: {\"error\": ...}` event "
        "of the same shape.",
        "",
        "Every answer carries `x-request-id`: the caller's own where it sent a well-formed one (1 to 64 of "
        "`A-Z a-z 0-9 . _ -`), else the job's id, else a new one. `x-job-id` is the job's, which "
        "`GET /jobs/{id}` takes. Messages of 5xx errors end with the request id; log lines carry it too.",
        "",
        "*Clients retry*: the official clients repeat 429 and 5xx twice by themselves, after `Retry-After` "
        "seconds where the answer says so. *No* means that the answer forbids it (`x-should-retry: false`), "
        "`-` that they do not repeat such a status.",
        "",
        "A batch that could not begin says why in its `errors`, with the line and one of `invalid_json`, "
        "`invalid_value`, `missing_required_parameter`, `duplicate_custom_id`, `too_many_lines`, "
        "`empty_file`, `invalid_api_key`. A line of its error file has the status and the body that the "
        "request would have been answered with, or `error` with one of `batch_expired`, `batch_cancelled`, "
        "`result_dropped` if there was no answer.",
        "",
        "| code | status | type | when | what to do | clients retry |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in TABLE:
        retried = row.status in {408, 409, 429} or row.status >= 500 or not row.retry
        retry = "-" if not retried else "yes" if row.retry else "no"
        status = "4xx" if row.code == "rejected_by_engine" else row.status
        lines.append(
            f"| `{row.code}` | {status} | `{row.type}` | {row.when} | {row.remedy} | {retry} |"
        )  # fmt: skip
    return "\n".join(lines) + "\n"
