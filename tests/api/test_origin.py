"""Which pages may open a WebSocket."""

from __future__ import annotations

import pytest
from asgiref.testing import ApplicationCommunicator

from gputorrent.origin import SameOrigin, may_open

HERE = "gpu.example:8000"


@pytest.mark.parametrize(
    ("origin", "may"),
    [
        ("http://gpu.example:8000", True),
        ("https://GPU.example:8000", True),  # TLS ends at a proxy; names of hosts have no case
        ("https://proxy.example", True),
        ("http://gpu.example", False),  # another port is another site
        ("http://evil.example", False),
        ("http://gpu.example:8000.evil.example", False),
        ("http://gpu.example:8000@evil.example", False),
        ("file://gpu.example:8000", False),
        ("null", False),
        ("", False),
        ("http://[", False),
    ],
)
@pytest.mark.parametrize("allowed", [["*"], ["gpu.example"]])
def test_only_this_sites_pages_may(settings, allowed, origin, may):
    settings.ALLOWED_HOSTS = allowed
    settings.CSRF_TRUSTED_ORIGINS = ["https://proxy.example"]
    assert may_open(origin, HERE) is may


@pytest.mark.parametrize("host", ["evil.example", ""])
def test_a_name_that_is_not_ours_does_not_make_a_page_ours(settings, host):
    """An attacker's name can be made to lead to our address."""
    settings.ALLOWED_HOSTS = ["gpu.example"]
    assert not may_open(f"http://{host}", host)


async def _open(*headers: tuple[bytes, bytes]) -> bool:
    async def accepts(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})

    scope = {"type": "websocket", "path": "/ws/dashboard", "headers": list(headers)}
    socket = ApplicationCommunicator(SameOrigin(accepts), scope)
    await socket.send_input({"type": "websocket.connect"})
    answer = await socket.receive_output()
    await socket.wait()
    return answer["type"] == "websocket.accept"


async def test_others_are_refused_before_the_socket_is_open():
    host = (b"host", HERE.encode())
    assert await _open(host, (b"origin", b"http://gpu.example:8000"))
    assert not await _open(host, (b"origin", b"http://evil.example"))
    assert not await _open(host)
