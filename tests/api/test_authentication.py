from __future__ import annotations

import asyncio

import pytest
from asgiref.sync import sync_to_async
from django.utils import timezone

from api import authentication
from api.authentication import KeyRing, Stranger, announce, edit, new_key, require_staff, revoke, rotate
from api.errors import ApiError
from api.models import ApiKey
from gputorrent import credentials
from tests.tables import rename

make = sync_to_async(new_key)


@pytest.fixture
async def ring(ledger, pipe):
    """A key ring, and a way to let it look for changes."""
    ring = KeyRing()

    async def refresh() -> KeyRing:
        await ring.refresh(pipe)
        return ring

    return refresh


async def test_a_good_key_says_who_it_is(ring):
    row, key = await make("ann")
    _, boss = await make("boss", staff=True)
    keys = await ring()
    caller = keys.caller(f"Bearer {key}")
    assert (caller.key, caller.name, caller.staff) == (row.pk, "ann", False)
    assert keys.caller(f"bearer  {boss} ").staff
    require_staff(keys.caller(f"Bearer {boss}"))
    with pytest.raises(ApiError) as caught:
        require_staff(caller)
    assert (caught.value.status, caught.value.code) == (403, "insufficient_permissions")


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "{key}", "Basic {key}", "Bearer{key}", "Bearer {key}x", "Bearer sk-gt-wrong",
     "Bearer é", "Bearer \x00", "Bearer {prefix}", "Bearer {hash}"],
)  # fmt: skip
async def test_anything_else_is_401(ring, header):
    row, key = await make("ann")
    keys = await ring()
    with pytest.raises(ApiError) as caught:
        keys.caller(header.format(key=key, prefix=row.prefix, hash=row.key_hash))
    refused = caught.value
    assert (refused.status, refused.type, refused.code) == (401, "authentication_error", "invalid_api_key")
    assert (b"www-authenticate", b"Bearer") in refused.headers
    assert key not in refused.message


async def test_a_revoked_key_is_refused_after_the_next_look(ring):
    row, key = await make("ann")
    keys = await ring()
    assert keys.caller(f"Bearer {key}")
    await sync_to_async(revoke)(row)
    await ring()
    with pytest.raises(ApiError):
        keys.caller(f"Bearer {key}")
    first = row.revoked_at
    await sync_to_async(revoke)(row)
    assert row.revoked_at == first


async def test_an_expired_key_is_refused_even_between_two_looks(ring):
    row, key = await make("ann", expires_in_seconds=1)
    keys = await ring()
    assert keys.caller(f"Bearer {key}").key == row.pk
    await asyncio.sleep(1)
    with pytest.raises(ApiError):
        keys.caller(f"Bearer {key}")
    _, later = await make("bob", expires_in_seconds=3600)
    await ApiKey.objects.filter(pk=row.pk).aupdate(expires_at=timezone.now())
    assert (await ring()).caller(f"Bearer {later}")


async def test_a_key_that_was_used_before_is_known_without_the_pepper(ring, monkeypatch):
    """So little does it cost; a stranger, however often it comes, is looked for as ever."""
    row, key = await make("ann")
    keys = await ring()
    forms = [f"Bearer {key}", f"bearer  {key} "]
    assert {keys.caller(form).key for form in forms} == {row.pk}
    assert isinstance(keys.find("Bearer wrong"), Stranger)
    asked: list[str] = []

    def digest(secret: str) -> str:
        asked.append(secret)
        return ""

    monkeypatch.setattr(credentials, "digest", digest)
    assert {keys.caller(form).key for form in forms} == {row.pk}
    assert not asked
    assert isinstance(keys.find("Bearer wrong"), Stranger)
    assert isinstance(keys.find(f"Bearer  {key}"), Stranger)  # not sent like that before
    assert asked == ["wrong", key]
    assert key not in str(vars(keys))


async def test_a_rotated_key_ends_with_its_grace_though_it_was_used(ring):
    row, old = await make("ann")
    assert (await ring()).caller(f"Bearer {old}").key == row.pk
    new = await sync_to_async(rotate)(row, grace_seconds=1)
    keys = await ring()
    assert [keys.caller(f"Bearer {key}").key for key in (old, new, old)] == [row.pk] * 3
    await asyncio.sleep(1)
    assert keys.find(f"Bearer {old}") is Stranger.WRONG_KEY
    assert keys.caller(f"Bearer {new}").key == row.pk
    newest = await sync_to_async(rotate)(row)
    keys = await ring()
    assert keys.find(f"Bearer {new}") is Stranger.WRONG_KEY
    assert keys.caller(f"Bearer {newest}").key == row.pk


async def test_a_key_that_was_used_has_its_new_rights_after_the_next_look(ring):
    row, key = await make("ann")
    assert (await ring()).caller(f"Bearer {key}").may_use("m")
    await sync_to_async(edit)(row, allowed_models=["other-*"], priority=3)
    caller = (await ring()).caller(f"Bearer {key}")
    assert (caller.may_use("m"), caller.may_use("other-m"), caller.priority) == (False, True, 3)


async def test_what_is_remembered_is_bounded(ring, monkeypatch):
    monkeypatch.setattr(authentication, "_MOST_REMEMBERED", 10)
    row, key = await make("ann")
    keys = await ring()
    for spaces in range(1, 50):
        assert keys.caller(f"Bearer{' ' * spaces}{key}").key == row.pk
        keys.find(f"Bearer wrong-{spaces}")
        assert len(keys._remembered) <= 10
    assert keys.caller(f"Bearer {key}").key == row.pk


async def test_keys_are_read_again_only_when_one_changed(ring):
    _, key = await make("ann")
    keys = await ring()
    await ApiKey.objects.aupdate(name="changed behind its back")
    await ring()
    assert keys.caller(f"Bearer {key}").name == "ann"
    await sync_to_async(announce)()
    await ring()
    assert keys.caller(f"Bearer {key}").name == "changed behind its back"


async def test_with_redis_away_the_keys_in_memory_stay_good(ring, wire):
    _, key = await make("ann")
    keys = await ring()
    wire.execute_command("ACL", "SETUSER", "default", "-get", "-incr")
    try:
        await ring()
        await make("made meanwhile")  # whoever makes a key is not kept from it either
    finally:
        wire.execute_command("ACL", "SETUSER", "default", "+@all")
    assert keys.caller(f"Bearer {key}").name == "ann"


async def test_with_the_ledger_away_the_keys_in_memory_stay_good(ring):
    _, key = await make("ann")
    keys = await ring()
    await rename("api_apikey", "api_apikey_away")
    try:
        await sync_to_async(announce)()
        await ring()
    finally:
        await rename("api_apikey_away", "api_apikey")
    assert keys.caller(f"Bearer {key}").name == "ann"


@pytest.mark.django_db
def test_only_a_hash_of_a_key_is_stored():
    row, key = new_key("ann")
    stored = str(list(ApiKey.objects.values()))
    assert key not in stored
    assert key.startswith(row.prefix)
    assert len(row.prefix) == 12
    assert credentials.matches(key, row.key_hash)
    assert not credentials.matches(key + "x", row.key_hash)
    assert new_key("bob")[1] != key


def test_the_hash_depends_on_the_pepper(settings):
    before = credentials.digest("x")
    settings.API_KEY_PEPPER = "another"
    assert credentials.digest("x") != before
    assert authentication.VERSION.startswith("gt:")
