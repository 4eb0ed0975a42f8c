"""What a completion costs a web process before and beside everything that waits: who calls, what is asked,
and where it goes. Microseconds of CPU a request, part by part; no Redis, database or network is in it.

    make bench-door            (or: .venv/bin/python -m benchmarks.door --help)

Two figures each: over and over in a tight loop (the least of several rounds), and once after the processor
has done much else, as in a busy web process (the lower quartile of single calls with cold caches: slower than
life, and nearer to it in how the parts compare).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gputorrent.settings")
os.environ.setdefault("SECRET_KEY", "benchmarks.door")

django.setup()

from api import priority, schemas  # noqa: E402
from api.authentication import Caller, KeyRing  # noqa: E402
from benchmarks.routing import nodes  # noqa: E402
from gputorrent import credentials  # noqa: E402
from jobs import routing  # noqa: E402
from jobs.interactive import Request  # noqa: E402
from jobs.outlook import Outlook  # noqa: E402

CHAT, TEXT, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
WORDS = "some words of a conversation that somebody has with a model, "
KEYS = 1000
LOOK = 250
"""Requests between two looks at the nodes: 1,000 a second, a look each 0.25 s."""

TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}},
}


def chat(messages: int, length: int, **more: Any) -> bytes:
    """A chat of so many messages of so many bytes, as the official clients write one."""
    text = (WORDS * (length // len(WORDS) + 1))[:length]
    roles = ["system", *(("user", "assistant") * messages)][:messages]
    turns = [{"role": role, "content": f"{n} {text}"} for n, role in enumerate(roles)]
    return json.dumps({"messages": turns, "model": "m", **more}, separators=(",", ":")).encode()


def text(length: int, **more: Any) -> bytes:
    return json.dumps(
        {"model": "m", "prompt": (WORDS * (length // len(WORDS) + 1))[:length], **more}
    ).encode()


BODIES: dict[str, tuple[str, bytes]] = {
    "two messages": (CHAT, chat(2, 60, max_tokens=100, temperature=0.7)),
    "two messages, streamed": (CHAT, chat(2, 60, max_tokens=100, temperature=0.7, stream=True)),
    "two messages and a tool": (CHAT, chat(2, 60, tools=[TOOL])),
    "20 messages": (CHAT, chat(20, 400, max_tokens=100)),
    "200 KB in two messages": (CHAT, chat(2, 100_000)),
    "200 KB, streamed": (CHAT, chat(2, 100_000, stream=True)),
    "200 KB, not ASCII": (CHAT, chat(2, 100_000).replace(b"some", "été".encode())),
    "200 KB in 200 messages": (CHAT, chat(200, 1000)),
    "a short completion": (TEXT, text(60, max_tokens=100)),
    "a completion of 200 KB": (TEXT, text(200_000, max_tokens=100)),
    "a completion of 30,000 token ids": (
        TEXT,
        json.dumps({"model": "m", "prompt": [n * 7 % 50_000 for n in range(30_000)]}).encode(),
    ),
    "an embedding of 16 texts": (EMBEDDINGS, json.dumps({"model": "m", "input": [WORDS * 5] * 16}).encode()),
}


class Costs(NamedTuple):
    """Microseconds of CPU."""

    warm: float
    cold: float


_MUCH: Final = bytes(6 << 20)
_MUCH_ELSE: Final = [{str(n): [n, str(n)]} for n in range(20_000)]


def _do_much_else() -> None:
    """Leave nothing of what is measured in the processor's caches."""
    zlib.crc32(_MUCH)
    json.dumps(_MUCH_ELSE[:2000])
    sum(map(len, _MUCH_ELSE))


def costs(what: Callable[[], object], chosen: argparse.Namespace) -> Costs:
    """Of one call."""
    what()
    begun = time.process_time()
    what()
    times = max(1, int(chosen.seconds / max(1e-6, time.process_time() - begun)))
    warm = []
    for _ in range(chosen.rounds):
        begun = time.process_time()
        for _ in range(times):
            what()
        warm.append((time.process_time() - begun) / times)
    cold = []
    for _ in range(chosen.cold):
        _do_much_else()
        begun = time.process_time()
        what()
        cold.append(time.process_time() - begun)
    return Costs(min(warm) * 1e6, sorted(cold)[len(cold) // 4] * 1e6 if cold else 0.0)


def ring() -> tuple[KeyRing, list[str]]:
    """The keys of a web process, and what their callers send as `Authorization`."""
    secrets = [credentials.new("sk-gt") for _ in range(KEYS)]
    keys = KeyRing()
    keys._callers = {
        credentials.digest(secret): Caller(n, f"key {n}", False, time.time() + 3600, priority=n % 2)
        for n, secret in enumerate(secrets)
    }
    return keys, [f"Bearer {secret}" for secret in secrets]


def callers(chosen: argparse.Namespace) -> dict[str, Costs]:
    keys, sent = ring()
    many = deque(sent)
    stranger = "Bearer sk-gt-nobody-knows-this-one-here-at-all"
    request = schemas.parse(*BODIES["two messages"], key=1)
    caller = keys.find(sent[1])
    limited = Caller(1, "limited", False, 0.0, models=("m",), nodes=frozenset({"a"}), priority=1)
    assert isinstance(caller, Caller)

    def one_of_many() -> None:
        many.rotate()
        keys.find(many[0])

    def rights() -> None:
        priority.apply(caller.authorise(request), caller, "")

    def more_rights() -> None:
        priority.apply(limited.authorise(request), limited, "1")

    return {
        "identify the same key": costs(lambda: keys.find(sent[0]), chosen),
        f"identify one of {KEYS:,} keys": costs(one_of_many, chosen),
        "identify a stranger": costs(lambda: keys.find(stranger), chosen),
        "rights and priority": costs(rights, chosen),
        "the same, held to nodes and models": costs(more_rights, chosen),
    }


def parsing(chosen: argparse.Namespace) -> dict[str, Costs]:
    found = {}
    for name, (path, body) in BODIES.items():

        def parse(path: str = path, body: bytes = body) -> Request:
            return schemas.parse(path, body, key=1)

        found[f"parse {name} ({len(body):,} bytes)"] = costs(parse, chosen)
    return found


def asked() -> Iterator[Request]:
    """Chats of several keys, a third of them going on with one that was seen before."""
    wanted = [
        schemas.parse(CHAT, chat(2, 60 + n % 3 * 400, prompt_cache_key=f"chat {n % 997}"), key=n % 7)
        for n in range(3000)
    ]
    while True:
        yield from wanted


class Desk:
    """A web process's outlook on so many nodes that never change."""

    def __init__(self, count: int) -> None:
        self.outlook = Outlook()
        views = nodes(count)
        self.outlook.snapshot._take({view.id: view for view in views})
        self.outlook.snapshot.leased = frozenset(self.outlook.snapshot.nodes)
        self.most = count * 8
        self.running: deque[str] = deque()
        self.requests = asked()
        self.placed = 0

    def place(self) -> None:
        """All that routing does for a request, from whether it is held off to the end of its attempt."""
        request, outlook = next(self.requests), self.outlook
        if self.placed % LOOK == 0:
            outlook._standings.clear()  # as a look at the nodes does
        self.placed += 1
        outlook.check_held_off(request)
        decision = outlook.decide(request, frozenset())
        assert isinstance(decision, routing.Place)
        turn = outlook.spreading.take(request.model, decision.order)
        node = decision.order[0].node
        turn.settle(decision.scored(node))
        outlook.placed(node, request.model)
        outlook.affinity.remember(request.prefix, node)
        self.running.append(node)
        if len(self.running) > self.most:
            outlook.left(self.running.popleft(), request.model)


def placing(chosen: argparse.Namespace) -> dict[str, Costs]:
    """The cost of a look at the nodes is not in it, that of the first decision after it is."""
    found = {}
    for count in chosen.nodes:
        desk = Desk(count)
        for _ in range(desk.most + LOOK):
            desk.place()
        found[f"routing with {count:,} node{'s' if count > 1 else ''}"] = costs(desk.place, chosen)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.1, help="of a round of one part")
    parser.add_argument("--cold", type=int, default=100, help="calls of each part with cold caches")
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 10, 1000])
    parser.add_argument("--json", action="store_true", help="all figures as one line of JSON")
    chosen = parser.parse_args()
    gc.collect()
    gc.freeze()  # as a web process does with what it has loaded
    told: dict[str, Costs] = {}
    for part in (callers, parsing, placing):
        told |= part(chosen)
    if chosen.json:
        print(json.dumps({name: [round(us, 2) for us in both] for name, both in told.items()}))
        return 0
    print(f"{'warm':>9} {'cold':>9}")
    for name, both in told.items():
        print(f"{both.warm:9.2f} {both.cold:9.2f} us  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
