"""How the house is built: who may import whom, and what no file may be."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("dashboard", "api", "jobs", "nodes", "gputorrent", "worker_agent")
CONTRACT = "worker_agent.contract"
PIPE = "worker_agent.pipe"
"""What goes to Redis in the agent and in the coordinator (`gputorrent.redis` brings it there)."""
HEAP = "worker_agent.heap"
"""How either keeps its memory."""
GROUND = (
    "gputorrent.background",
    "gputorrent.chosen",
    "gputorrent.credentials",
    "gputorrent.entropy",
    "gputorrent.ledger",
    "gputorrent.logins",
    "gputorrent.looks",
    "gputorrent.redis",
    "gputorrent.settings",
    "gputorrent.steps",
    "gputorrent.tracing",
)
"""What every room of the coordinator stands on."""
TOP = ("gputorrent.asgi", "gputorrent.urls")
"""What stands on the rooms."""
MAY_IMPORT = {
    "dashboard": ("dashboard", "api", "jobs", "nodes", CONTRACT, *GROUND),
    "api": ("api", "jobs", "nodes", CONTRACT, *GROUND),
    "jobs": ("jobs", "nodes", CONTRACT, *GROUND),
    "nodes": ("nodes", CONTRACT, *GROUND),
    "worker_agent": ("worker_agent",),
    "gputorrent": ("gputorrent", CONTRACT, PIPE, HEAP),
}
MOST_LINES = 400
LARGER = {"worker_agent.contract": 450}
"""Modules that have outgrown the limit and are to be split; they may not grow further."""
VAGUE = {"utils", "util", "helpers", "helper", "misc", "common", "base", "lib", "tools"}


def modules(*rooms: str) -> list[Path]:
    found = [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]
    assert found
    return [path for path in found if "migrations" not in path.parts]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, at its top or inside a function; as far as it is ours,
    also what is imported from it."""
    here = name_of(path).split(".") if path.name == "__init__.py" else name_of(path).split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            found |= {_joined(base, alias.name) for alias in node.names}
    return found


def _joined(base: str, name: str) -> str:
    inner = ROOT.joinpath(*base.split("."), name)
    is_module = inner.is_dir() or inner.with_suffix(".py").exists()
    return f"{base}.{name}" if is_module else base


def ours(imported: set[str]) -> set[str]:
    return {name for name in imported if name.split(".")[0] in (*ROOMS, "tests", "benchmarks")}


def within(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == a or name.startswith(f"{a}.") for a in allowed)


@pytest.mark.parametrize("path", modules(*ROOMS), ids=name_of)
def test_imports_point_downwards(path):
    room = path.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT[room]
    if name_of(path) in TOP:
        allowed = ("gputorrent", "dashboard", "api", "jobs", "nodes", HEAP)
    wrong = {name for name in ours(imports(path)) if not within(name, allowed)}
    assert not wrong, f"{name_of(path)} may not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("name", GROUND)
def test_the_ground_stands_on_nothing_of_ours(name):
    path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    assert not ours(imports(path)) - {*GROUND, PIPE}


def test_the_pipe_stands_on_nothing_of_ours():
    assert not ours(imports(ROOT.joinpath(*PIPE.split(".")).with_suffix(".py")))


def test_the_contract_needs_the_standard_library_and_msgspec_alone():
    path = ROOT.joinpath(*CONTRACT.split(".")).with_suffix(".py")
    others = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    assert others == {"msgspec"}


def test_the_agent_needs_neither_django_nor_the_engine():
    found = {name.split(".")[0] for path in modules("worker_agent") for name in imports(path)}
    assert not found & {"django", "rest_framework", "channels", "django_rq", "rq", "vllm", "torch"}


@pytest.mark.parametrize("path", modules(*ROOMS), ids=name_of)
def test_every_module_says_what_it_is_and_is_not_too_long(path):
    text, name = path.read_text(encoding="utf-8"), name_of(path)
    assert ast.get_docstring(ast.parse(text)) or not text.strip(), f"{name} has no docstring"
    lines = len(text.splitlines())
    assert lines <= LARGER.get(name, MOST_LINES), f"{name} is too long: it does more than one thing"
    assert lines > MOST_LINES or name not in LARGER, f"{name} has been split: take it off the list"


def test_no_file_has_a_name_that_says_nothing():
    everything = modules(*ROOMS, "tests")
    assert not [path for path in everything if path.stem in VAGUE]


def test_only_the_lifecycles_write_a_state():
    """Every `state=` in an update is in the module that owns the table of moves (or it claims, see there)."""
    owners = {"jobs.lifecycle", "nodes.lifecycle"}
    for path in modules("api", "jobs", "nodes"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "update":
                names = {keyword.arg for keyword in node.keywords}
                assert "state" not in names or name_of(path) in owners, f"{name_of(path)} line {node.lineno}"
