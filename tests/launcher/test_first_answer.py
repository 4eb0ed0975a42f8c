"""Waiting for the model: what the launcher makes of a coordinator's answers."""

import contextlib
import http.server
import json
import threading

import pytest

from gputorrent import first_answer
from gputorrent.children import Child
from gputorrent.demo_model import Model
from gputorrent.family import Failure, Family, Interrupts
from gputorrent.stack import Place, Stack

Answer = tuple[int, list[dict[str, str]]]
REFUSED: Answer = (401, [])
NONE_YET: Answer = (200, [])
LOADED: Answer = (200, [{"id": "m"}])


class Coordinator(http.server.ThreadingHTTPServer):
    """Gives these answers, one after the other, and the last again and again."""

    def __init__(self, answers) -> None:
        super().__init__(("127.0.0.1", 0), Door)
        self.answers = list(answers)
        self.keys: list[str | None] = []


class Door(http.server.BaseHTTPRequestHandler):
    server: Coordinator

    def do_GET(self) -> None:
        self.server.keys.append(self.headers["authorization"])
        answers = self.server.answers
        status, models = answers.pop(0) if len(answers) > 1 else answers[0]
        body = json.dumps({"data": models}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def coordinator(*answers):
    with Coordinator(answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def wait(tmp_path, monkeypatch):
    monkeypatch.setattr(first_answer, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(first_answer, "_MODEL_SECONDS", 20.0)  # for broken code only

    def wait(server: Coordinator, web_processes: int = 1) -> None:
        family = Family(Interrupts())
        stack = Stack(Place(tmp_path, "127.0.0.1", server.server_port, web_processes), family, {})
        agent = Child("agent", ["true"], tmp_path / "log")
        first_answer.wait_for_model(stack, family, agent, "sk-gt-x", Model("m", "m"))

    return wait


def test_a_key_that_is_not_known_yet_is_waited_for(wait):
    with coordinator(REFUSED, REFUSED, NONE_YET, LOADED) as server:
        wait(server)
        assert server.keys == ["Bearer sk-gt-x"] * 4


def test_of_several_web_processes_all_have_the_model_by_then(wait):
    with coordinator(LOADED, NONE_YET, LOADED, LOADED, NONE_YET, LOADED) as server:
        wait(server, web_processes=2)
        assert len(server.keys) == 8


def test_a_key_that_stays_refused_ends_it(wait, monkeypatch):
    monkeypatch.setattr(first_answer, "_REFUSED_SECONDS", 0.2)
    with coordinator(NONE_YET, REFUSED) as server:
        with pytest.raises(Failure, match="refuses its own key: HTTP 401"):
            wait(server)
        assert len(server.keys) > 2
