"""What agents ask of the registry, and what it does by itself. `nodes.steering` has what operators ask.

A verb changes the ledger in one transaction, then publishes the node for routing. The verbs block; async
callers run them in a thread. All raise `redis.RedisError` when the wire is away, with the ledger unchanged
or already true, so that calling again is safe.
"""

from __future__ import annotations

import datetime
import re
import secrets
from dataclasses import dataclass

import redis
from django.conf import settings
from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone

from gputorrent import credentials
from gputorrent.redis import blocking
from nodes import acl, samples, view
from nodes.lifecycle import Move, move, note
from nodes.models import EnrolmentToken, Gpu, Node, NodeModel, NodeState
from worker_agent.contract import (
    PROTOCOL,
    BeatReply,
    Goodbye,
    Heartbeat,
    ModelReport,
    RedisAccess,
    Register,
    Registered,
    control_key,
    inbox_key,
    lease_key,
)


@dataclass
class Refusal(Exception):
    """An agent is told no. `code` is for the agent, `message` for its owner, `status` is HTTP's."""

    status: int
    code: str
    message: str
    retry_after: float = 0.0

    def __str__(self) -> str:
        return self.message


# -- enrolment tokens ----------------------------------------------------------------------------------


def new_token(
    *,
    note: str = "",
    expires_in: datetime.timedelta | None = None,
    max_uses: int = 1,
    needs_approval: bool = False,
) -> tuple[EnrolmentToken, str]:
    """Make an enrolment token. The second value is the token itself, which is not stored."""
    secret = credentials.new("gte")
    row = EnrolmentToken.objects.create(
        prefix=secret[:10],
        token_hash=credentials.digest(secret),
        note=note,
        expires_at=timezone.now() + expires_in if expires_in else None,
        max_uses=max_uses,
        needs_approval=needs_approval,
    )
    return row, secret


def _use_token(secret: str) -> EnrolmentToken:
    """Count one use of a token, or refuse. Runs inside the enrolment's transaction."""
    token = EnrolmentToken.objects.filter(token_hash=credentials.digest(secret)).first()
    if token is None:
        raise Refusal(
            401, "bad_token", "this enrolment token is not known here: ask for a new one (admin, or "
            "manage.py enrolment_token)"
        )  # fmt: skip
    now = timezone.now()
    if token.revoked_at:
        raise Refusal(401, "bad_token", "this enrolment token was revoked: ask for a new one")
    if token.expires_at and token.expires_at <= now:
        raise Refusal(
            401, "bad_token", f"this enrolment token expired at {token.expires_at:%Y-%m-%d %H:%M} UTC"
        )
    free = Q(max_uses=0) | Q(uses__lt=F("max_uses"))
    if not EnrolmentToken.objects.filter(free, pk=token.pk, revoked_at=None).update(uses=F("uses") + 1):
        raise Refusal(401, "bad_token", "this enrolment token has been used up: ask for a new one")
    return token


# -- what agents ask for -------------------------------------------------------------------------------


def register(request: Register, reached_as: str) -> Registered:
    """Let an agent in: a new node by token, or a known one by its secret. Raises `Refusal`.

    Every registration starts a new incarnation: the Redis user is made anew, which cuts the connections
    of the one before it, and what lay in its inbox is dropped (its owners place that work again).
    """
    if request.protocol != PROTOCOL:
        older = request.protocol < PROTOCOL
        raise Refusal(
            426,
            "protocol_too_old" if older else "protocol_too_new",
            f"this agent speaks protocol {request.protocol}, the coordinator {PROTOCOL}: "
            f"upgrade the {'agent' if older else 'coordinator'}",
        )
    _check_unique(request)
    client = blocking()
    with transaction.atomic():
        if request.node:
            node, new_secret = _known(request, client), ""
        else:
            node, new_secret = _enrol(request)
        _write_description(node, request)
        password, node.redis_password_sha256 = acl.grant(client, node.pk)
        client.delete(inbox_key(node.pk), control_key(node.pk))
        node.incarnation += 1
        Node.objects.filter(pk=node.pk).update(
            incarnation=node.incarnation, redis_password_sha256=node.redis_password_sha256
        )
        _return(node, f"registered (incarnation {node.incarnation})")
    publish(node)
    return Registered(
        node=node.pk,
        incarnation=node.incarnation,
        state=node.state,
        redis=acl.access(node.pk, password, reached_as),
        heartbeat_seconds=settings.HEARTBEAT_SECONDS,
        lease_refresh_seconds=settings.LEASE_REFRESH_SECONDS,
        lease_seconds=settings.LEASE_SECONDS,
        secret=new_secret,
    )


def _check_unique(request: Register | Heartbeat) -> None:
    names = [m.name for m in request.models]
    indexes = [g.index for g in request.gpus]
    if len(set(names)) != len(names):
        raise Refusal(422, "invalid_request", "a model is listed twice")
    if len(set(indexes)) != len(indexes):
        raise Refusal(422, "invalid_request", "a GPU index is listed twice")


def _enrol(request: Register) -> tuple[Node, str]:
    if not request.token:
        raise Refusal(401, "token_required", "a new node needs an enrolment token (--token)")
    token = _use_token(request.token)
    secret = credentials.new("gtn")
    state = NodeState.PENDING if token.needs_approval else NodeState.ONLINE
    node = Node.objects.create(
        pk=secrets.token_hex(8),
        name=_free_name(request.name),
        state=state,
        state_reason="enrolled",
        secret_hash=credentials.digest(secret),
        token=token,
    )
    note(node, f"enrolled with token {token.prefix}…")
    return node, secret


def _free_name(wanted: str) -> str:
    taken = set(Node.objects.filter(name__startswith=wanted[:55]).values_list("name", flat=True))
    name, n = wanted, 1
    while name in taken:
        n += 1
        name = f"{wanted[:55]}-{n}"
    return name


def _known(request: Register, client: redis.Redis) -> Node:
    node = Node.objects.select_for_update().filter(pk=request.node).first()
    if node is None or not credentials.matches(request.secret, node.secret_hash):
        raise Refusal(
            401, "unknown_node", "this node's credentials are not known here: enrol it with a token"
        )
    if node.state == NodeState.REVOKED:
        raise Refusal(403, "node_revoked", f"node {node.name} was revoked: {node.state_reason}")
    # The same host may take over at once: a lock on the credentials file allows one agent there, so the
    # old one is dead. Another host with the same credentials is a copy, unless the first has gone quiet.
    if node.machine and node.machine != request.machine and client.exists(lease_key(node.pk)):
        raise Refusal(
            409,
            "identity_in_use",
            f"another agent on another host is using the identity of node {node.name}: enrol this host with "
            "a token of its own instead of copying credentials",
            retry_after=settings.LEASE_SECONDS,
        )
    return node


def _write_description(node: Node, request: Register) -> None:
    host = request.host
    columns = {
        "machine": request.machine,
        "instance": request.instance,
        "agent_version": request.agent_version,
        "hostname": host.hostname,
        "os": host.os,
        "arch": host.arch,
        "cpu": host.cpu,
        "cpu_count": host.cpu_count,
        "ram_total": host.ram_total,
        "ram_free": host.ram_free,
        "disk_free": host.disk_free,
        "labels": request.labels,
        "in_flight": 0,
        "registered_at": timezone.now(),
        "last_beat_at": timezone.now(),
    }
    Node.objects.filter(pk=node.pk).update(**columns)
    for name, value in columns.items():
        setattr(node, name, value)
    node.gpus.exclude(index__in=[g.index for g in request.gpus]).delete()
    Gpu.objects.bulk_create(
        [
            Gpu(
                node=node,
                index=g.index,
                uuid=g.uuid,
                name=g.name,
                vram_total=g.vram_total,
                vram_free=g.vram_free,
                driver=g.driver,
                compute_capability=g.compute_capability,
            )
            for g in request.gpus
        ],
        update_conflicts=True,
        unique_fields=["node", "index"],
        update_fields=["uuid", "name", "vram_total", "vram_free", "driver", "compute_capability"],
    )
    _write_models(node, request.models)


_MODEL_COLUMNS = [
    "state",
    "slots",
    "max_model_len",
    "progress",
    "reason",
    "engine",
    "running",
    "waiting",
    "kv_cache_usage",
    "tokens_per_s",
    "ttft_ms",
    "stream_tokens_per_s",
    "vram_used",
    "need",
    "need_measured",
    "fits",
    "pinned",
    "idle_seconds",
    "retry_seconds",
    "load_seconds",
]


def _write_models(node: Node, reports: list[ModelReport]) -> None:
    now = timezone.now()
    node.models.exclude(name__in=[m.name for m in reports]).delete()
    NodeModel.objects.bulk_create(
        [
            NodeModel(node=node, name=m.name, updated_at=now, **{c: getattr(m, c) for c in _MODEL_COLUMNS})
            for m in reports
        ],
        update_conflicts=True,
        unique_fields=["node", "name"],
        update_fields=[*_MODEL_COLUMNS, "updated_at"],
    )


def _return(node: Node, reason: str) -> None:
    """A node that was away is back; anything else stays as it is."""
    move(node, Move.RETURN_DRAINED if node.drain_wanted else Move.RETURN, reason)


_BEARER = re.compile(r"Bearer ([0-9a-f]{16})\.(gtn-[\w-]{43})")


def authenticate(authorization: str) -> Node:
    """The node behind ``Authorization: Bearer <node>.<secret>``. Raises `Refusal`."""
    found = _BEARER.fullmatch(authorization)
    node = Node.objects.filter(pk=found[1]).first() if found else None
    if node is None or found is None or not credentials.matches(found[2], node.secret_hash):
        raise Refusal(
            401, "unknown_node", "this node's credentials are not known here: enrol it with a token"
        )
    if node.state == NodeState.REVOKED:
        raise Refusal(403, "node_revoked", f"node {node.name} was revoked: {node.state_reason}")
    return node


def check_incarnation(node: Node, incarnation: int) -> None:
    """Raises `Refusal` for a message of an agent that was replaced by a newer start."""
    if incarnation != node.incarnation:
        raise Refusal(
            409, "fenced", f"a newer agent (incarnation {node.incarnation}) has taken over node {node.name}"
        )


def beat(node: Node, beat: Heartbeat, reached_as: str) -> BeatReply:
    """Take a heartbeat: figures to the ledger, the node to routing. Raises `Refusal` when fenced."""
    check_incarnation(node, beat.incarnation)
    _check_unique(beat)
    with transaction.atomic():
        Node.objects.filter(pk=node.pk).update(
            last_beat_at=timezone.now(),
            ram_free=beat.ram_free,
            disk_free=beat.disk_free,
            cpu_usage=beat.cpu_usage,
            in_flight=len(beat.attempts),
            memory_budget=beat.memory_budget,
            memory_used=beat.memory_used,
        )
        for load in beat.gpus:
            node.gpus.filter(index=load.index).update(
                vram_free=load.vram_free,
                utilisation=load.utilisation,
                temperature_c=load.temperature_c,
                power_w=load.power_w,
            )
        _write_models(node, beat.models)
        samples.take(node, beat)
        if beat.draining:
            move(node, Move.DRAIN, f"the agent drains: {beat.draining_reason or 'it is stopping'}")
        elif node.state in {NodeState.UNHEALTHY, NodeState.GONE}:
            _return(node, "beats again")
        elif node.state == NodeState.DRAINING and not node.drain_wanted:
            move(node, Move.RESUME, "the agent takes work again")
    lost = beat.redis_denied or (not beat.redis_connected and not acl.exists(blocking(), node.pk))
    access = _new_access(node, reached_as) if lost else None
    pinned = [m.name for m in publish(node).models.all() if m.pin_wanted]
    # Only what the operator wants: an agent that was told to drain because it drains would never stop.
    return BeatReply(state=node.state, draining=node.drain_wanted, redis=access, pinned=pinned)


def _new_access(node: Node, reached_as: str) -> RedisAccess:
    """New Redis credentials for a node that cannot use the ones it has (Redis was emptied, say)."""
    password, digest = acl.grant(blocking(), node.pk)
    Node.objects.filter(pk=node.pk).update(redis_password_sha256=digest)
    return acl.access(node.pk, password, reached_as)


def goodbye(node: Node, message: Goodbye) -> None:
    """The agent has stopped and left nothing behind."""
    check_incarnation(node, message.incarnation)
    with transaction.atomic():
        # The last beat may be under way and move the node: this is about the state it leaves.
        node.refresh_from_db(fields=["state"], from_queryset=Node.objects.select_for_update())
        move(node, Move.LEAVE, ": ".join(filter(None, ("said goodbye", message.reason))))
        Node.objects.filter(pk=node.pk).update(in_flight=0)
    publish(node)
    acl.withdraw(blocking(), node.pk)


def publish(node: Node) -> Node:
    """Make the ledger's word on a node what routing sees. Returns the node as it was read for that."""
    now = Node.objects.prefetch_related("models", "gpus").get(pk=node.pk)
    view.publish(blocking(), [view.of(now)])
    return now


def mark_unhealthy() -> int:
    """Take nodes out of service that have neither beaten nor kept their lease. Returns how many.

    The lease is looked at too because a coordinator that was itself paused has missed everybody's beats,
    while the agents went on refreshing their leases in Redis.
    """
    limit = timezone.now() - datetime.timedelta(seconds=settings.UNHEALTHY_AFTER_SECONDS)
    working = Q(state=NodeState.ONLINE) | Q(state=NodeState.DRAINING)
    lost = 0
    for node in Node.objects.filter(working, last_beat_at__lt=limit):
        if blocking().exists(lease_key(node.pk)):
            continue
        if move(node, Move.LOSE, f"no heartbeat for {settings.UNHEALTHY_AFTER_SECONDS:g} s"):
            publish(node)
            lost += 1
    return lost


def heal() -> None:
    """Rebuild what Redis should hold, from the ledger, after it came back empty. Safe to run at any time."""
    client = blocking()
    nodes = Node.objects.exclude(state=NodeState.REVOKED).prefetch_related("models", "gpus")
    for node in nodes:
        if node.redis_password_sha256 and not acl.exists(client, node.pk) and node.state != NodeState.GONE:
            acl.restore(client, node.pk, node.redis_password_sha256)
    view.publish(client, [view.of(node) for node in nodes])
    view.mark_filled(client)
