from __future__ import annotations

import os
import stat

import pytest

from worker_agent.errors import Preflight
from worker_agent.identity import default_name, take

URL = "http://coordinator:8000"


def test_a_credential_is_kept_for_the_next_start_and_only_its_user_can_read_it(tmp_path):
    first = take(tmp_path, URL)
    assert first.credential is None
    first.keep("00" * 8, "s3cret")
    first.release()
    again = take(tmp_path, URL)
    assert again.credential is not None
    assert (again.credential.node, again.credential.secret) == ("00" * 8, "s3cret")
    mode = stat.S_IMODE((again.folder / "credentials.json").stat().st_mode)
    assert mode == 0o600
    assert stat.S_IMODE(again.folder.stat().st_mode) == 0o700
    again.release()


def test_a_secret_does_not_show_in_a_representation(tmp_path):
    identity = take(tmp_path, URL)
    identity.keep("00" * 8, "s3cret")
    assert "s3cret" not in repr(identity.credential)
    identity.release()


def test_a_second_agent_takes_the_next_slot_and_name_and_finds_it_again(tmp_path):
    first, second = take(tmp_path, URL), take(tmp_path, URL)
    assert (first.number, second.number) == (1, 2)
    assert first.name == default_name()
    assert second.name == f"{default_name()}-2"
    first.keep("11" * 8, "one")
    second.keep("22" * 8, "two")
    second.release()
    second = take(tmp_path, URL)  # the first still runs
    assert second.credential is not None
    assert second.credential.node == "22" * 8
    first.release()
    second.release()


def test_a_chosen_name_finds_its_own_identity_whatever_the_order(tmp_path):
    for node, name in (("aa" * 8, "left"), ("bb" * 8, "right")):
        identity = take(tmp_path, URL, name)
        identity.keep(node, "s")
        identity.release()
    for name, node in (("right", "bb" * 8), ("left", "aa" * 8)):
        identity = take(tmp_path, URL, name)
        assert identity.name == name
        assert identity.credential is not None
        assert identity.credential.node == node
        identity.release()


def test_another_coordinator_is_another_credential(tmp_path):
    identity = take(tmp_path, URL)
    identity.keep("11" * 8, "one")
    identity.release()
    other = take(tmp_path, "http://elsewhere:8000")
    assert other.credential is None
    other.release()


def test_a_forgotten_credential_is_gone(tmp_path):
    identity = take(tmp_path, URL)
    identity.keep("11" * 8, "one")
    identity.forget()
    assert identity.credential is None
    identity.release()


def test_a_damaged_file_counts_as_none(tmp_path):
    identity = take(tmp_path, URL)
    (identity.folder / "credentials.json").write_text("{ not json")
    assert identity.credential is None
    identity.keep("11" * 8, "one")
    assert identity.credential is not None
    identity.release()


def test_a_state_folder_that_cannot_be_used_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Preflight, match="--state-dir"):
        take(tmp_path / "file" / "state", URL)


def test_the_lock_does_not_leak_into_children(tmp_path):
    identity = take(tmp_path, URL)
    assert not os.get_inheritable(identity._lock)
    identity.release()
