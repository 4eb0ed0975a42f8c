from __future__ import annotations

import asyncio

import pytest
from asgiref.sync import sync_to_async
from django.utils import timezone

from api import authentication
from api.authentication import KeyRing, announce, new_key, require_staff, revoke
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
