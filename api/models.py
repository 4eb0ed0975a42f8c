"""API keys: who may ask, for what, and how much; and what each has used."""

from __future__ import annotations

import re
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils import timezone

from nodes.models import Node, NodeState
from worker_agent.contract import MODEL_NAME, NODE_NAME

MOST_ENTRIES = 200
_LABEL = re.compile(r"[^=\s]{1,100}=[^=\s]{0,100}")


def check_models(value: Any) -> None:
    """A list of model names; the last character may be ``*``. Raises `ValidationError`."""
    for entry in _words(value):
        if entry != "*" and not MODEL_NAME.fullmatch(entry.removesuffix("*")):
            raise ValidationError(f"{entry!r} is neither a model's name nor a beginning followed by '*'.")


def check_nodes(value: Any) -> None:
    """A list of node names, node ids, or labels as ``key=value``. Raises `ValidationError`."""
    for entry in _words(value):
        if not (_LABEL if "=" in entry else NODE_NAME).fullmatch(entry):
            raise ValidationError(f"{entry!r} is neither a node's name or id, nor a label as 'key=value'.")


def _words(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ValidationError("This must be a list of words.")
    if len(value) > MOST_ENTRIES:
        raise ValidationError(f"At most {MOST_ENTRIES} entries.")
    return value


def _limit(what: str) -> Any:
    return models.PositiveBigIntegerField(
        default=0, blank=True, validators=[MaxValueValidator(10**15)], help_text=f"{what}; 0: no limit"
    )


class ApiKey(models.Model):
    """One key. Only its hash is stored; the key itself is shown once."""

    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=16, editable=False)
    key_hash = models.CharField(max_length=64, unique=True, editable=False)
    previous_hash = models.CharField(max_length=64, blank=True, editable=False)
    previous_until = models.DateTimeField(
        "old secret valid until", null=True, blank=True, editable=False, help_text="after a rotation"
    )
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL)
    staff = models.BooleanField(
        default=False, help_text="may read the cluster's state (/workers, /cluster/status) and every job"
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    allowed_models = models.JSONField(
        default=list,
        blank=True,
        validators=[check_models],
        help_text="names of models it may use, or beginnings followed by *; empty: all",
    )
    allowed_nodes = models.JSONField(
        default=list,
        blank=True,
        validators=[check_nodes],
        help_text="only these nodes see its prompts: names, ids, or labels as key=value (a label is the "
        "node's own word, so name nodes where it matters); empty: all",
    )
    priority = models.SmallIntegerField(
        default=0,
        blank=True,
        validators=[MinValueValidator(-100), MaxValueValidator(100)],
        help_text="from -100 to 100; whoever waits with a higher one is served first",
    )
    concurrency = _limit("requests at once")
    requests_per_minute = _limit("requests in any 60 seconds")
    tokens_per_minute = _limit("tokens (prompt and answer) in any 60 seconds")
    tokens_per_day = _limit("tokens for each day (UTC)")
    tokens_per_month = _limit("tokens for each month (UTC)")

    class Meta:
        ordering = ["-created_at"]
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @property
    def state(self) -> str:
        """'valid', 'revoked' or 'expired', now."""
        if self.revoked_at:
            return "revoked"
        return "expired" if self.expires_at and self.expires_at <= timezone.now() else "valid"

    def node_ids(self) -> frozenset[str] | None:
        """The nodes that may see its prompts; None: all. One query if it is restricted."""
        return among(self.allowed_nodes, places()) if self.allowed_nodes else None


def places() -> list[tuple[str, str, dict[str, str]]]:
    """Id, name and labels of every node that was not revoked."""
    return list(Node.objects.exclude(state=NodeState.REVOKED).values_list("id", "name", "labels"))


def among(allowed: list[str], nodes: list[tuple[str, str, dict[str, str]]]) -> frozenset[str]:
    """The ids of those nodes that an entry of `allowed` names, or whose label it is. Pure."""
    wanted = set(allowed)
    return frozenset(
        id_
        for id_, name, labels in nodes
        if id_ in wanted or name in wanted or any(f"{k}={v}" in wanted for k, v in labels.items())
    )


class Usage(models.Model):
    """What a key has used of a model on one day (UTC): written by `api.usage` alone, as increments."""

    # No database constraint: it is written behind, and a key deleted meanwhile must not cost a batch.
    key = models.ForeignKey(ApiKey, on_delete=models.PROTECT, db_constraint=False, related_name="usage")
    model = models.CharField(max_length=200)
    day = models.DateField()
    requests = models.PositiveBigIntegerField(default=0)
    errors = models.PositiveBigIntegerField(default=0, help_text="of these: failed or expired")
    cancelled = models.PositiveBigIntegerField(default=0, help_text="of these: cancelled, or the caller left")
    prompt_tokens = models.PositiveBigIntegerField(default=0)
    completion_tokens = models.PositiveBigIntegerField(default=0)
    estimated_tokens = models.PositiveBigIntegerField(
        default=0, help_text="of all tokens: counted by us, since the work ended before the engine said"
    )
    gpu_seconds = models.FloatField("GPU-seconds", default=0, help_text="time its attempts were on nodes")

    class Meta:
        ordering = ["-day", "key", "model"]
        verbose_name_plural = "usage"
        constraints = [models.UniqueConstraint(fields=["key", "model", "day"], name="one_usage_row_per_day")]
        indexes = [models.Index(fields=["day"])]

    def __str__(self) -> str:
        return f"{self.key_id} {self.model} {self.day}"
