"""The Redis user of one node: what it may touch, and nothing else.

Each command is bound to its keys by a selector (Redis 7). With plain key patterns a node that may XADD to
reply streams could also SET over them.
"""

from __future__ import annotations

import hashlib
import secrets
from urllib.parse import urlsplit

import redis
from django.conf import settings

from worker_agent.contract import RedisAccess, control_key, inbox_key, lease_key, reply_key

LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def username(node: str) -> str:
    return f"gt-node-{node}"


def _rules(node: str, password_rule: str) -> list[str]:
    inbox, control, lease = inbox_key(node), control_key(node), lease_key(node)
    return [
        "reset",
        "on",
        password_rule,
        "+ping",
        "+hello",
        "+client|setinfo",
        "+client|setname",
        f"(+xread %R~{inbox} %R~{control})",
        f"(+xdel %W~{inbox} %W~{control})",
        f"(+xadd %W~{reply_key('*')})",
        "+fcall",  # of a function's commands it may do those above, on these keys
        f"(+set +del %RW~{lease})",
    ]


def _set_user(client: redis.Redis, node: str, password_rule: str) -> None:
    # One MULTI: a node must never find itself without a user between the two.
    with client.pipeline(transaction=True) as pipe:
        pipe.execute_command("ACL", "DELUSER", username(node))  # cuts connections that use the old password
        pipe.execute_command("ACL", "SETUSER", username(node), *_rules(node, password_rule))
        pipe.execute()


def grant(client: redis.Redis, node: str) -> tuple[str, str]:
    """Make the user anew. Returns (password, its SHA-256 in hex); open connections of the node are cut.

    Raises `redis.RedisError` when Redis is away or we may not manage its users.
    """
    password = secrets.token_urlsafe(32)
    _set_user(client, node, f">{password}")
    return password, hashlib.sha256(password.encode()).hexdigest()


def restore(client: redis.Redis, node: str, password_sha256: str) -> None:
    """Make the user with the password it had, after Redis has lost its users."""
    _set_user(client, node, f"#{password_sha256}")


def exists(client: redis.Redis, node: str) -> bool:
    return client.execute_command("ACL", "GETUSER", username(node)) is not None


def withdraw(client: redis.Redis, node: str) -> None:
    """Delete the user, which cuts its open connections, and what the node had on the wire."""
    client.execute_command("ACL", "DELUSER", username(node))
    client.delete(inbox_key(node), control_key(node), lease_key(node))


def access(node: str, password: str, reached_as: str) -> RedisAccess:
    """What to tell the node. `reached_as` is the host name by which it reached the coordinator."""
    url = settings.REDIS_PUBLIC_URL
    if not url:
        parts = urlsplit(settings.REDIS_URL)
        host = parts.hostname or "127.0.0.1"
        if host in LOOPBACK and reached_as and reached_as not in LOOPBACK:
            host = reached_as
        host = f"[{host}]" if ":" in host else host
        url = f"{parts.scheme}://{host}:{parts.port or 6379}{parts.path or '/0'}"
    return RedisAccess(url=url, username=username(node), password=password)
