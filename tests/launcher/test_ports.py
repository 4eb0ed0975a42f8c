import socket

import pytest

from gputorrent import ports


def test_a_port_that_somebody_listens_on_is_not_free():
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        assert not ports.is_free(taken)
        assert ports.next_free(taken) > taken
        with pytest.raises(OSError, match="no free port"):
            ports.next_free(taken, tries=1)
    assert ports.is_free(taken)


def test_any_free_gives_a_port_to_listen_on():
    with socket.create_server(("127.0.0.1", ports.any_free())):
        pass


def test_any_free_stays_clear_of_the_ports_of_outgoing_connections():
    assert all(ports.any_free() < 32_768 for _ in range(50))


def test_any_free_keeps_to_the_ports_it_is_given(monkeypatch):
    monkeypatch.setenv("GPUTORRENT_PORTS", "31000-31009")
    assert {ports.any_free() for _ in range(50)} <= set(range(31000, 31010))


@pytest.mark.parametrize(
    "given", ["", "20000", "20000-", "a-b", "80-90", "30000-20000", "20000-70000", "-1-5"]
)
def test_ports_that_make_no_sense_are_refused_in_words(monkeypatch, given):
    monkeypatch.setenv("GPUTORRENT_PORTS", given)
    with pytest.raises(ValueError, match="such as 20000-25999"):
        ports.any_free()
