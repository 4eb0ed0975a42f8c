"""HTTP to the coordinator: register, beat, goodbye, report. Its errors are two: try again, or do not."""

from __future__ import annotations

from typing import TypeVar

import httpx
import msgspec

from worker_agent import contract
from worker_agent.contract import BeatReply, Goodbye, Heartbeat, Refused, Register, Registered, Report
from worker_agent.errors import AgentError

_T = TypeVar("_T")


class Unreachable(Exception):
    """No answer, a 5xx, 408 or 429: trying again later can help. `retry_after` in seconds, 0 if unknown."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Rejected(AgentError):
    """The coordinator refused: trying the same again cannot help. `code` is for programs."""

    def __init__(self, status: int, code: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after


class Coordinator:
    """One coordinator, at `url`. After `authenticate`, calls carry this node's credential."""

    def __init__(self, url: str, *, timeout: float = 10.0) -> None:
        self.url = url
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout, follow_redirects=False)
        self._bearer: dict[str, str] = {}

    def authenticate(self, node: str, secret: str) -> None:
        """Sign every later call as this node."""
        self._bearer = {"authorization": f"Bearer {node}.{secret}"}

    async def register(self, message: Register) -> Registered:
        """Raises `Unreachable` or `Rejected`, as do all the others."""
        return self._decode(await self._post(contract.REGISTER, message), Registered)

    async def beat(self, message: Heartbeat) -> BeatReply:
        """Tell how the node does; the answer tells what the operator wants."""
        return self._decode(await self._post(contract.HEARTBEAT, message), BeatReply)

    async def goodbye(self, message: Goodbye) -> None:
        """Say that the agent stops."""
        await self._post(contract.GOODBYE, message)

    async def report(self, message: Report) -> None:
        """Hand over what became of asynchronous work."""
        body, kind = contract.encode(message), "application/msgpack"
        await self._send(contract.REPORT, body, kind)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _post(self, path: str, message: msgspec.Struct) -> bytes:
        return await self._send(path, msgspec.json.encode(message), "application/json")

    async def _send(self, path: str, body: bytes, content_type: str) -> bytes:
        headers = {"content-type": content_type, **self._bearer}
        try:
            response = await self._http.post(path, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise Unreachable(str(error) or type(error).__name__) from error
        if response.is_success:
            return response.content
        raise _error(response)

    def _decode(self, body: bytes, kind: type[_T]) -> _T:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError:
            raise Unreachable(f"what answers at {self.url} is not a coordinator") from None


def _error(response: httpx.Response) -> Unreachable | Rejected:
    status = response.status_code
    try:
        refused = msgspec.json.decode(response.content, type=Refused)
    except msgspec.MsgspecError:
        told = response.headers.get("retry-after", "")
        refused = Refused("", f"it answered HTTP {status}", float(told) if told.isdigit() else 0.0)
    if status >= 500 or status in (408, 429):
        return Unreachable(refused.message, refused.retry_after)
    if not refused.code:
        where = f"{response.request.url} answered HTTP {status}: is that the coordinator's address?"
        return Rejected(status, "not_a_coordinator", where)
    return Rejected(status, refused.code, refused.message, refused.retry_after)
