"""The registry: nodes, their GPUs, the models they carry, the tokens that let them in, and their history.

`Node.state` is written by `nodes.lifecycle` alone. Sizes are in bytes, ratios between 0 and 1.
"""

from __future__ import annotations

from django.db import models
from django.utils import timezone

from worker_agent.contract import ModelState


class NodeState(models.TextChoices):
    PENDING = "pending", "waiting for approval"
    ONLINE = "online", "online"
    DRAINING = "draining", "draining"
    UNHEALTHY = "unhealthy", "unhealthy"
    GONE = "gone", "gone"
    REVOKED = "revoked", "revoked"


class Node(models.Model):
    """One agent's identity. It outlives restarts of the agent; each restart raises `incarnation`."""

    id = models.CharField(primary_key=True, max_length=16, editable=False)
    name = models.CharField(max_length=63, unique=True)
    state = models.CharField(max_length=16, choices=NodeState.choices, default=NodeState.PENDING)
    state_reason = models.CharField(max_length=300, blank=True)
    drain_wanted = models.BooleanField(default=False, help_text="the operator wants no new work here")

    secret_hash = models.CharField(max_length=64, editable=False)
    redis_password_sha256 = models.CharField(max_length=64, editable=False, blank=True)
    machine = models.CharField(max_length=200, blank=True, editable=False)
    instance = models.CharField(max_length=200, blank=True, editable=False)
    incarnation = models.PositiveIntegerField(default=0)
    token = models.ForeignKey(
        "EnrolmentToken", null=True, blank=True, on_delete=models.SET_NULL, related_name="nodes"
    )

    agent_version = models.CharField(max_length=200, blank=True)
    hostname = models.CharField(max_length=200, blank=True)
    os = models.CharField("operating system", max_length=200, blank=True)
    arch = models.CharField(max_length=200, blank=True)
    cpu = models.CharField(max_length=200, blank=True)
    cpu_count = models.PositiveIntegerField(default=0)
    cpu_usage = models.FloatField(default=0)
    ram_total = models.BigIntegerField(default=0)
    ram_free = models.BigIntegerField(default=0)
    disk_free = models.BigIntegerField(default=0)
    memory_budget = models.BigIntegerField(default=0, help_text="what its engines may take in all")
    memory_used = models.BigIntegerField(default=0, help_text="what they took at the last beat")
    labels = models.JSONField(default=dict, blank=True)
    in_flight = models.PositiveIntegerField(default=0, help_text="attempts the agent ran at its last beat")

    enrolled_at = models.DateTimeField(default=timezone.now)
    registered_at = models.DateTimeField(null=True, blank=True)
    last_beat_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def gpus_in_words(self) -> str:
        """Such as '2 x NVIDIA L40S'; empty without any."""
        names = [gpu.name for gpu in self.gpus.all()]
        counted = {name: names.count(name) for name in names}
        return ", ".join(f"{n} x {name}" if n > 1 else name for name, n in counted.items())


class Gpu(models.Model):
    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="gpus")
    index = models.PositiveIntegerField()
    uuid = models.CharField(max_length=200)
    name = models.CharField(max_length=200)
    vram_total = models.BigIntegerField()
    vram_free = models.BigIntegerField()
    driver = models.CharField(max_length=200, blank=True)
    compute_capability = models.CharField(max_length=200, blank=True)
    utilisation = models.FloatField(null=True, blank=True)
    temperature_c = models.FloatField(null=True, blank=True)
    power_w = models.FloatField(null=True, blank=True)

    class Meta:
        ordering = ["node", "index"]
        verbose_name = "GPU"
        constraints = [models.UniqueConstraint(fields=["node", "index"], name="one_gpu_per_index")]

    def __str__(self) -> str:
        return f"{self.name} #{self.index}"


class NodeModel(models.Model):
    """A model on a node, as the node last reported it."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="models")
    name = models.CharField(max_length=200, db_index=True)
    state = models.CharField(max_length=16, choices=[(s.value, s.value) for s in ModelState])
    slots = models.PositiveIntegerField(help_text="requests run at once")
    max_model_len = models.PositiveIntegerField(default=0, help_text="tokens of context; 0 while unknown")
    progress = models.FloatField(default=0)
    reason = models.CharField(max_length=2000, blank=True)
    engine = models.CharField(max_length=200, blank=True)
    running = models.PositiveIntegerField(default=0)
    waiting = models.PositiveIntegerField(default=0)
    kv_cache_usage = models.FloatField(default=0)
    tokens_per_s = models.FloatField(default=0)
    ttft_ms = models.FloatField(default=0)
    stream_tokens_per_s = models.FloatField(default=0, help_text="decode speed of one request; 0: unknown")
    vram_used = models.BigIntegerField(default=0)
    need = models.BigIntegerField(default=0, help_text="memory it takes when loaded; 0 while unknown")
    need_measured = models.BooleanField(default=False, help_text="seen after a load, not estimated")
    fits = models.BooleanField(default=True, help_text="no: it can never be loaded on this node")
    pinned = models.BooleanField(default=False, help_text="never unloaded for another model")
    pin_wanted = models.BooleanField(default=False, editable=False)
    idle_seconds = models.FloatField(default=0)
    retry_seconds = models.FloatField(default=0)
    load_seconds = models.FloatField(default=0)
    updated_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["node", "name"]
        verbose_name = "model on a node"
        verbose_name_plural = "models on nodes"
        constraints = [models.UniqueConstraint(fields=["node", "name"], name="one_row_per_model_and_node")]

    def __str__(self) -> str:
        return f"{self.name} on {self.node}"


class EnrolmentToken(models.Model):
    """Lets new nodes in. Only its hash is stored; the token itself is shown once."""

    prefix = models.CharField(max_length=16, editable=False)
    token_hash = models.CharField(max_length=64, unique=True, editable=False)
    note = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    max_uses = models.PositiveIntegerField(default=1, help_text="0: any number")
    uses = models.PositiveIntegerField(default=0, editable=False)
    needs_approval = models.BooleanField(
        default=False, help_text="nodes enrolled with it wait for an admin before they get work"
    )
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.prefix}…"

    @property
    def state(self) -> str:
        """'valid', or why it lets nobody in now: 'revoked', 'expired' or 'used up'."""
        if self.revoked_at:
            return "revoked"
        if self.expires_at and self.expires_at <= timezone.now():
            return "expired"
        return "used up" if self.max_uses and self.uses >= self.max_uses else "valid"


class NodeEvent(models.Model):
    """What happened to a node, in words: one row for each change of state, and for what an operator did."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="events")
    at = models.DateTimeField(default=timezone.now)
    was = models.CharField(max_length=16, blank=True)
    now = models.CharField(max_length=16, blank=True)
    reason = models.CharField(max_length=300)

    class Meta:
        ordering = ["-at", "-id"]
        indexes = [models.Index(fields=["node", "-at"])]

    def __str__(self) -> str:
        return f"{self.was} → {self.now}: {self.reason}" if self.was != self.now else self.reason


class NodeSample(models.Model):
    """What a node said of itself at one heartbeat. Kept whole for an hour, thinned after that."""

    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="samples")
    at = models.DateTimeField(default=timezone.now)
    keep = models.BooleanField(default=False, help_text="the first of its five minutes: outlives the hour")
    in_flight = models.PositiveIntegerField(default=0)
    running = models.PositiveIntegerField(default=0)
    waiting = models.PositiveIntegerField(default=0)
    tokens_per_s = models.FloatField(default=0)
    ttft_ms = models.FloatField(default=0)
    kv_cache_usage = models.FloatField(default=0)
    gpu_utilisation = models.FloatField(null=True, blank=True)
    gpu_temperature_c = models.FloatField(null=True, blank=True)
    gpu_power_w = models.FloatField(null=True, blank=True)
    vram_used = models.BigIntegerField(default=0)
    memory_used = models.BigIntegerField(default=0)
    ram_free = models.BigIntegerField(default=0)
    cpu_usage = models.FloatField(default=0)

    class Meta:
        ordering = ["-at"]
        indexes = [models.Index(fields=["node", "-at"]), models.Index(fields=["at", "keep"])]

    def __str__(self) -> str:
        return f"{self.node_id} at {self.at:%H:%M:%S}"
