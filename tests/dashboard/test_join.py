"""The page that lets hosts join: the command it shows, and how far whoever came is."""

from __future__ import annotations

import itertools
import re
import shlex

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission

from dashboard.join import warnings
from dashboard.join_command import Wanted, command, start
from nodes import registry
from nodes.agent_wheel import Wheel
from nodes.models import EnrolmentToken, Node, NodeState
from tests.nodes.agents import HERE, model, registration
from worker_agent import settings as agent_settings
from worker_agent.contract import ModelState

WHEEL = Wheel("gputorrent_agent-1+ab-py3-none-any.whl", b"", "00ff")
FORM = {
    "loaded": "Qwen/Qwen3-8B",
    "engine": "install",
    "address": "https://gpu.example.org",
    "hours": "24",
    "uses": "1",
}
NASTY = "m=/models/it's; touch $HOME/x"


def words_of(text: str) -> list[str]:
    """What a shell makes of the last command in a line of them."""
    return shlex.split(text.replace("\\\n", " ").rpartition("&& ")[2])


def told(text: str) -> agent_settings.Settings:
    """What the agent would understand."""
    words = words_of(text)
    return agent_settings.read(words[words.index("worker_agent") + 1 :], {})


# -- the command -----------------------------------------------------------------------------------------


def test_the_command_installs_by_hash_and_starts_the_agent_with_what_was_chosen():
    wanted = Wanted("https://gpu.example.org", loaded=("Qwen/Qwen3-8B",), offered=(NASTY,), name="lab-a")
    text = command(wanted, WHEEL, 7, "gte-secret", "v1")
    url = "https://gpu.example.org/agent/gputorrent_agent-1%2Bab-py3-none-any.whl?join=7#sha256=00ff"
    assert shlex.quote(f"gputorrent-agent[engine] @ {url}") in text
    agent = told(text)
    assert (agent.coordinator, agent.name) == ("https://gpu.example.org", "lab-a")
    assert [m.source for m in (*agent.models, *agent.offers)] == ["Qwen/Qwen3-8B", NASTY[2:]]
    assert words_of(text)[0] == "GPUTORRENT_TOKEN=gte-secret"
    assert "gte-secret" not in start(wanted)


def test_a_vllm_that_is_there_is_used_and_not_installed():
    wanted = Wanted("http://c:8000", engine="python", loaded=("m",), python="/opt/my vllm/bin/python")
    text = command(wanted, WHEEL, 1, "gte-x", "v1")
    assert "[engine]" not in text
    assert told(text).engine_python == "/opt/my vllm/bin/python"
    home = Wanted("http://c:8000", engine="python", loaded=("m",), python="~/v/bin/python")
    assert "--engine-python ~/v/bin/python" in command(home, WHEEL, 1, "gte-x", "v1")


def test_a_server_that_runs_is_named_by_its_address():
    wanted = Wanted(
        "http://c:8000", engine="server", loaded=("llama=llama3:8b",), server="http://127.0.0.1:11434"
    )
    remote = told(command(wanted, WHEEL, 1, "gte-x", "v1")).remotes[0]
    assert (remote.name, remote.served_name, remote.where) == ("llama", "llama3:8b", "http://127.0.0.1:11434")


def test_the_container_runs_the_same():
    wanted = Wanted("http://c:8000", engine="container", loaded=("a", NASTY))
    words = shlex.split(command(wanted, WHEEL, 1, "gte-x", "v9").replace("\\\n", " "))
    assert words[:2] == ["docker", "run"]
    assert "vllm/vllm-openai:v9" in words
    agent = told(words[-1])
    assert [m.source for m in agent.models] == ["a", NASTY[2:]]


def test_folders_of_the_host_are_in_the_container_where_they_are_on_it():
    wanted = Wanted("http://c", engine="container", loaded=("a=/models/a", "org/b"), offered=("c=/srv/c d",))
    words = shlex.split(command(wanted, WHEEL, 1, "gte-x", "v9").replace("\\\n", " "))
    mounts = [then for word, then in itertools.pairwise(words) if word == "--mount"]
    assert mounts == [
        f"type=bind,source={folder},target={folder},readonly" for folder in ("/models/a", "/srv/c d")
    ]


@pytest.mark.parametrize(
    ("address", "redis_url", "expected"),
    [
        ("https://gpu.example.org", "rediss://redis.example.org", []),
        ("http://127.0.0.1:8000", "redis://127.0.0.1:6379", ["other hosts"]),
        ("https://gpu.example.org", "redis://127.0.0.1:6380", ["gpu.example.org:6380"]),
        ("http://10.0.0.5:8000", "redis://10.0.0.5:6379", ["in the clear"]),
    ],
)
def test_what_will_go_wrong_is_said_beforehand(address, redis_url, expected):
    found = warnings(address, redis_url)
    assert len(found) == len(expected)
    assert all(part in warning for part, warning in zip(expected, found, strict=True))


# -- the page --------------------------------------------------------------------------------------------


@pytest.fixture
def operator(db, wire, quick, client):
    user = get_user_model().objects.create_user("olga", password="x", is_staff=True)
    user.user_permissions.set(
        Permission.objects.filter(codename__in=["add_enrolmenttoken", "change_node", "view_node"])
    )
    client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
    return client


def secret_in(page) -> str:
    return found_in(page, r"gte-[\w-]{43}")


def found_in(page, pattern: str) -> str:
    found = re.search(pattern, page.content.decode())
    assert found, pattern
    return found[0]


def test_the_token_is_made_as_asked_shown_once_and_noted(operator):
    page = operator.post("/admin/join/", {**FORM, "note": "Anna's", "uses": "3", "needs_approval": "on"})
    assert page.status_code == 200
    assert "no-store" in page.headers["Cache-Control"]
    row = EnrolmentToken.objects.get()
    assert (row.note, row.max_uses, row.needs_approval) == ("Anna's", 3, True)
    assert row.expires_at
    assert 23 < (row.expires_at - row.created_at).total_seconds() / 3600 <= 24
    secret = secret_in(page)
    again = operator.get(f"/admin/join/{row.pk}/")
    assert (again.status_code, secret in again.content.decode()) == (200, False)
    assert LogEntry.objects.get().object_id == str(row.pk)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"loaded": ""}, "loaded"),
        ({"loaded": "--model"}, "loaded"),
        ({"loaded": "m", "offered": "m=other"}, "offered"),
        ({"address": "gpu.example.org"}, "address"),
        ({"address": "https://me:pw@gpu.example.org"}, "address"),
        ({"address": "http://h:99999"}, "address"),
        ({"engine": "container", "offered": "m2=../m2"}, "offered"),
        ({"engine": "python"}, "python"),
        ({"engine": "python", "python": "--help"}, "python"),
        ({"engine": "server", "server": "ftp://x"}, "server"),
        ({"name": "a b"}, "name"),
        ({"uses": "0"}, "uses"),
        ({"hours": "5"}, "hours"),
    ],
)
def test_what_cannot_be_is_refused_at_its_field_and_no_token_is_made(operator, changes, field):
    page = operator.post("/admin/join/", {**FORM, **changes})
    assert page.status_code == 400
    assert list(page.context["form"].errors) == [field]
    assert not EnrolmentToken.objects.exists()


def test_the_page_follows_a_host_to_its_first_model(operator):
    page = operator.post("/admin/join/", {**FORM, "needs_approval": "on"})
    token = EnrolmentToken.objects.get()
    told_of = lambda: operator.get(f"/admin/join/{token.pk}/state").json()  # noqa: E731
    assert (told_of()["nodes"], told_of()["fetched_at"]) == ([], None)
    wheel = found_in(page, r"/agent/[^?]+\?join=\d+")
    assert operator.get(wheel).status_code == 200
    assert told_of()["fetched_at"] is not None

    registry.register(registration(token=secret_in(page), models=[model(state=ModelState.LOADING)]), HERE)
    node = Node.objects.get()
    (shown,) = told_of()["nodes"]
    assert (shown["pending"], shown["ready"], told_of()["token"]) == (True, False, "used up")
    answer = operator.post(f"/admin/join/{token.pk}/approve/{node.pk}")
    assert answer.json() == {"approved": True, "state": "online"}
    node.refresh_from_db()
    assert node.state == NodeState.ONLINE
    assert LogEntry.objects.filter(object_id=node.pk).exists()
    (shown,) = told_of()["nodes"]
    assert [step["state"] for step in shown["steps"]] == ["done", "done", "now", "now"]


def test_only_a_node_that_came_with_the_token_is_approved_there(operator):
    other, _ = registry.new_token()
    _, secret = registry.new_token(needs_approval=True)
    registry.register(registration(token=secret), HERE)
    node = Node.objects.get()
    assert operator.post(f"/admin/join/{other.pk}/approve/{node.pk}").status_code == 404
    node.refresh_from_db()
    assert node.state == NodeState.PENDING


def test_who_may_make_no_tokens_is_told_so_in_words(operator):
    user = get_user_model().objects.get()
    user.user_permissions.set(Permission.objects.filter(codename="view_node"))
    token, _ = registry.new_token()
    for path in ("", f"{token.pk}/", f"{token.pk}/state"):
        page = operator.get(f"/admin/join/{path}")
        assert page.status_code == 403
        assert "nodes.add_enrolmenttoken" in page.content.decode()
    assert operator.post("/admin/join/", FORM).status_code == 403
    assert EnrolmentToken.objects.count() == 1
