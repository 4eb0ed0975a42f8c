"""The admin, page by page, as a browser asks for it."""

from __future__ import annotations

import re

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape

from api.authentication import new_key
from api.models import ApiKey
from gputorrent import credentials
from jobs.interactive import new_job_id
from jobs.models import Attempt, Job, JobState
from nodes import registry
from nodes.backoffice.rows import Rows
from nodes.models import EnrolmentToken, Gpu, Node, NodeModel, NodeState
from tests.nodes.agents import enrol, restart

pytestmark = pytest.mark.django_db

OURS = [
    model
    for label in ("nodes", "jobs", "api")
    for model in apps.get_app_config(label).get_models()
    if admin.site.is_registered(model)
]


def url(model, page: str, *args) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=args)


def a_job(node: Node | None, **changes) -> Job:
    fields = {
        "path": "/v1/completions",
        "model": "m",
        "state": JobState.COMPLETED,
        "first_token_at": timezone.now(),
    }
    job = Job.objects.create(id=new_job_id(), node=node, finished_at=timezone.now(), **{**fields, **changes})
    Attempt.objects.create(job=job, number=1, node=node, lease="0" * 32, outcome="done")
    return job


@pytest.fixture
def rows(wire) -> dict[str, Node]:
    """A few of everything."""
    nodes = {}
    for name in ("one", "two"):
        nodes[name], answer = enrol(name=name)
        restart(answer, name=name)
        nodes[name].refresh_from_db()
    waiting, _ = enrol(name="waiting", needs_approval=True)
    nodes["waiting"] = waiting
    row, _ = new_key("ann")
    for n, state in enumerate(JobState):
        a_job(nodes["one"] if n % 2 else None, state=state, key=row, stream=bool(n % 3), error_code="x" * n)
    registry.new_token(note="lab")
    return nodes


def test_everything_that_people_look_after_is_in_the_admin():
    assert {Node, EnrolmentToken, Job, ApiKey} <= set(OURS)


def test_the_front_page_carries_our_name(admin_client):
    page = admin_client.get(reverse("admin:index")).content.decode()
    assert "GPU Torrent" in page


@pytest.mark.parametrize("model", OURS, ids=lambda m: m.__name__)
def test_its_list_searches_filters_and_pages_open(admin_client, rows, model):
    page = url(model, "changelist")
    options = admin.site.get_model_admin(model)
    assert admin_client.get(page).status_code == 200
    if options.search_fields:
        for word in ("one", "a b", "é", "%", "x" * 300):
            assert admin_client.get(page, {"q": word}).status_code == 200
    shown = admin_client.get(page).content.decode()
    queries = {q for q in re.findall(r'href="\?([^"]+)"', shown) if "_facets" not in q}
    choices = filter_choices(shown)
    assert choices or queries or not options.list_filter
    for query in (*queries, *choices):
        assert admin_client.get(f"{page}?{query.replace('&amp;', '&')}").status_code == 200, query
    for row in model.objects.all()[:5]:
        assert admin_client.get(url(model, "change", row.pk)).status_code == 200


def filter_choices(page: str) -> set[str]:
    """What the filters of a list offer, as queries."""
    selects = re.findall(r'<select name="(\w+)"[^>]*>(.*?)</select>', page, re.DOTALL)
    return {
        f"{name}={value}"
        for name, options in selects
        for value in re.findall(r'<option value="([^"]+)"', options)
        if name != "action"
    }


def test_the_front_page_opens_and_nobody_gets_in_without_logging_in(admin_client, client, rows):
    assert admin_client.get(reverse("admin:index")).status_code == 200
    for model in OURS:
        assert client.get(url(model, "changelist")).status_code == 302


def ask(client, model, action: str, *rows, **more) -> str:
    """Choose an action in the list; the page that comes of it."""
    form = {"action": action, "_selected_action": [row.pk for row in rows], **more}
    answer = client.post(url(model, "changelist"), form, follow=True)
    assert answer.status_code == 200
    return answer.content.decode()


def act(client, model, action: str, *rows) -> str:
    """Choose an action, and confirm it."""
    return ask(client, model, action, *rows, confirmed="yes")


def test_drain_resume_and_revoke_change_the_node_and_are_logged(admin_client, admin_user, rows):
    one = rows["one"]
    for action, state in (("drain", "draining"), ("resume", "online"), ("revoke", "revoked")):
        act(admin_client, Node, action, one)
        assert Node.objects.get(pk=one.pk).state == state
    entries = LogEntry.objects.order_by("pk").values_list("user_id", "object_id", "change_message")
    assert list(entries) == [(admin_user.pk, one.pk, what) for what in ("Draining", "Resumed", "Revoked")]
    assert admin_user.get_username() in Node.objects.get(pk=one.pk).state_reason


def test_approving_lets_a_waiting_node_work(admin_client, rows):
    act(admin_client, Node, "approve", rows["waiting"])
    assert Node.objects.get(pk=rows["waiting"].pk).state == NodeState.ONLINE


def test_an_action_that_does_nothing_says_so_and_is_not_logged(admin_client, rows):
    assert "nothing to do" in act(admin_client, Node, "approve", rows["one"])
    assert not LogEntry.objects.exists()


def test_with_redis_away_the_admin_says_so(admin_client, rows, wire):
    wire.execute_command("ACL", "SETUSER", "default", "-hmget")
    try:
        said = act(admin_client, Node, "drain", rows["one"])
    finally:
        wire.execute_command("ACL", "SETUSER", "default", "+@all")
    assert "Redis is away" in said


@pytest.fixture
def viewer(client):
    """Somebody who may look at nodes, tokens and keys, and change nothing."""
    user = get_user_model().objects.create_user("viewer", password="p", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client.force_login(user)
    return client


@pytest.mark.parametrize("action", ["approve", "drain", "resume", "revoke"])
def test_who_may_only_look_cannot_steer(viewer, rows, action):
    shown = viewer.get(url(Node, "changelist"))
    assert shown.status_code == 200
    assert f'value="{action}"' not in shown.content.decode()
    before = list(Node.objects.order_by("pk").values())
    act(viewer, Node, action, *rows.values())
    assert list(Node.objects.order_by("pk").values()) == before


def test_who_may_only_look_cannot_revoke_keys_or_tokens(viewer, rows):
    act(viewer, ApiKey, "revoke_keys", *ApiKey.objects.all())
    act(viewer, EnrolmentToken, "revoke", *EnrolmentToken.objects.all())
    assert not ApiKey.objects.exclude(revoked_at=None).exists()
    assert not EnrolmentToken.objects.exclude(revoked_at=None).exists()


@pytest.mark.parametrize("page", ["add", "delete", "change"])
@pytest.mark.parametrize("model", [Node, Job])
def test_what_agents_and_the_system_write_is_not_edited(admin_client, rows, model, page):
    row = model.objects.first()
    answer = admin_client.post(url(model, page, *([] if page == "add" else [row.pk])), {"post": "yes"})
    assert answer.status_code == 403
    assert model.objects.filter(pk=row.pk).exists()


IN_2999 = {"expires_at_0": "2999-01-01", "expires_at_1": "00:00"}


def secret_in(page: str, prefix: str) -> str:
    (found,) = set(re.findall(rf"{prefix}-[\w-]{{43}}", page))
    return found


def test_a_key_made_in_the_admin_is_shown_once(admin_client, admin_user):
    form = {
        "name": "bob",
        "staff": "on",
        "owner": admin_user.pk,
        **IN_2999,
    }
    made = admin_client.post(url(ApiKey, "add"), form, follow=True).content.decode()
    row = ApiKey.objects.get()
    assert credentials.matches(secret_in(made, "sk-gt"), row.key_hash)
    assert (row.name, row.staff, row.owner, row.expires_at and row.expires_at.year) == (
        "bob",
        True,
        admin_user,
        2999,
    )
    again = admin_client.get(url(ApiKey, "change", row.pk)).content.decode()
    assert "sk-gt-" not in again.replace(row.prefix, "")
    admin_client.post(url(ApiKey, "change", row.pk), {"name": "rob", "owner": ""})
    changed = ApiKey.objects.get()
    assert (changed.name, changed.key_hash, changed.prefix) == ("rob", row.key_hash, row.prefix)
    act(admin_client, ApiKey, "revoke_keys", row)
    assert ApiKey.objects.get().revoked_at
    assert LogEntry.objects.filter(change_message="Revoked").count() == 1


def test_a_token_made_in_the_admin_is_shown_once(admin_client):
    form = {
        "note": "lab",
        "max_uses": "3",
        "needs_approval": "on",
        **IN_2999,
    }
    made = admin_client.post(url(EnrolmentToken, "add"), form, follow=True).content.decode()
    row = EnrolmentToken.objects.get()
    assert credentials.matches(secret_in(made, "gte"), row.token_hash)
    assert (row.note, row.max_uses, row.needs_approval) == ("lab", 3, True)
    assert row.expires_at
    assert row.expires_at.year == 2999
    assert "gte-" not in admin_client.get(url(EnrolmentToken, "change", row.pk)).content.decode().replace(
        row.prefix, ""
    )
    act(admin_client, EnrolmentToken, "revoke", row)
    assert EnrolmentToken.objects.get().revoked_at


@pytest.mark.parametrize("model", [ApiKey, EnrolmentToken])
def test_keys_and_tokens_are_revoked_not_deleted(admin_client, rows, model):
    row = model.objects.first()
    assert admin_client.post(url(model, "delete", row.pk), {"post": "yes"}).status_code == 403
    act(admin_client, model, "delete_selected", row)
    assert model.objects.filter(pk=row.pk).exists()


@pytest.mark.parametrize("model", [Job, Node])
def test_a_list_costs_the_same_number_of_queries_however_long_it_is(
    admin_client, django_assert_max_num_queries, wire, model
):
    page = url(model, "changelist")

    def queries() -> int:
        with django_assert_max_num_queries(30) as counted:
            assert admin_client.get(page).status_code == 200
        return len(counted)

    node, _ = enrol(name="first")
    owner, _ = new_key("ann")
    a_job(node, key=owner)
    admin_client.get(page)
    with_one = queries()
    for n in range(49 if model is Job else 15):
        a_job(node, key=owner) if model is Job else enrol(name=f"more-{n}")
    assert queries() == with_one


def test_a_keys_rights_are_typed_as_words_and_checked(admin_client):
    form = {"name": "bob", "allowed_models": "a/b, c*\nd", "allowed_nodes": "zone=eu", "concurrency": "4"}
    admin_client.post(url(ApiKey, "add"), {**form, "priority": "", "tokens_per_day": ""})
    row = ApiKey.objects.get()
    assert (row.allowed_models, row.allowed_nodes) == (["a/b", "c*", "d"], ["zone=eu"])
    assert (row.concurrency, row.priority, row.tokens_per_day) == (4, 0, 0)
    page = admin_client.get(url(ApiKey, "change", row.pk)).content.decode()
    assert "a/b\nc*\nd" in page
    wrong = {"name": "bob", "allowed_models": "no way!", "priority": "500"}
    answer = admin_client.post(url(ApiKey, "change", row.pk), wrong).content.decode()
    assert "way!" in answer
    assert "less than or equal to 100" in answer
    row.refresh_from_db()
    assert row.allowed_models == ["a/b", "c*", "d"]


def test_a_key_is_rotated_in_the_admin_and_its_new_secret_shown_once(admin_client):
    row, first = new_key("ann")
    secret = secret_in(act(admin_client, ApiKey, "rotate_keys", row), "sk-gt")
    row.refresh_from_db()
    assert credentials.matches(secret, row.key_hash)
    assert credentials.matches(first, row.previous_hash)
    assert "sk-gt-" not in admin_client.get(url(ApiKey, "changelist")).content.decode().replace(
        row.prefix, ""
    )
    act(admin_client, ApiKey, "rotate_keys_now", row)
    row.refresh_from_db()
    assert row.previous_until is None
    act(admin_client, ApiKey, "revoke_keys", row)
    assert "cannot be rotated" in act(admin_client, ApiKey, "rotate_keys", row)
    assert LogEntry.objects.filter(change_message="Rotated").count() == 2


LISTS = [options for options in admin.site._registry.values() if isinstance(options, Rows)]


@pytest.mark.parametrize("options", LISTS, ids=lambda options: options.model.__name__)
def test_a_list_without_rows_says_what_brings_some_and_not_that_something_is_wrong(admin_client, options):
    model = options.model
    said = admin_client.get(url(model, "changelist")).content.decode()
    assert options.when_empty
    assert escape(options.when_empty) in said
    assert "yielded" not in said
    if options.way_on:
        assert f'href="{options.way_on.link}"' in said
    sought = admin_client.get(url(model, "changelist"), {"q": "nobody"} if options.search_fields else {})
    assert not options.search_fields or "Nothing matches" in sought.content.decode()


def test_a_list_without_rows_leads_nobody_where_he_may_not_go(viewer):
    said = viewer.get(url(Node, "changelist")).content.decode()
    assert "Nothing here yet" in said
    assert reverse("join") not in said


def test_figures_have_units_and_what_is_not_so_is_no_fault(admin_client, rows):
    Gpu.objects.update(temperature_c=76.0, power_w=126.951)
    NodeModel.objects.update(max_model_len=32768)
    for page in (url(Gpu, "changelist"), url(Node, "change", rows["one"].pk)):
        said = admin_client.get(page).content.decode()
        assert "76\N{NO-BREAK SPACE}°C" in said
        assert "127\N{NO-BREAK SPACE}W" in said
        assert "Temperature c" not in said
    for page in (url(Node, "change", rows["one"].pk), url(EnrolmentToken, "changelist")):
        said = admin_client.get(page).content.decode()
        assert "close_small" not in said
    page = admin_client.get(url(Node, "change", rows["one"].pk)).content.decode()
    assert "32,768\N{NO-BREAK SPACE}tokens" in page


@pytest.mark.parametrize(
    ("zone", "moment"),
    [
        ("Asia/Tokyo", "2998-12-31T15:00:00+00:00"),
        ("", "2999-01-01T00:00:00+00:00"),
        ("../../etc/passwd", "2999-01-01T00:00:00+00:00"),
        ("Europe", "2999-01-01T00:00:00+00:00"),
    ],
)
def test_a_time_is_typed_in_the_zone_that_the_browser_tells(admin_client, zone, moment):
    admin_client.cookies["timezone"] = zone
    admin_client.post(url(ApiKey, "add"), {"name": "bob", **IN_2999})
    row = ApiKey.objects.get()
    assert row.expires_at
    assert row.expires_at.isoformat() == moment
    form = admin_client.get(url(ApiKey, "change", row.pk)).content.decode()
    assert 'value="2999-01-01"' in form
    assert 'value="00:00:00"' in form


def test_a_row_is_called_what_it_is_called(admin_client, rows):
    title = admin_client.get(url(Node, "change", rows["one"].pk)).content.decode()
    assert re.search(r"<a [^>]*>\s*one\s*</a", title)
    assert not re.search(r"<a [^>]*>\s*One\s*</a", title)
