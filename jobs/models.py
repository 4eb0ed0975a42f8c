"""The ledger of jobs and of the attempts made at them. `Job.state` is written by `jobs.lifecycle` alone."""

from __future__ import annotations

from django.db import models
from django.utils import timezone


class JobState(models.TextChoices):
    PENDING = "pending", "pending"
    RUNNING = "running", "running"
    COMPLETED = "completed", "completed"
    FAILED = "failed", "failed"
    CANCELLED = "cancelled", "cancelled"
    EXPIRED = "expired", "expired"


TERMINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})


class Job(models.Model):
    """One completion. The id is a UUIDv7 in hex: it sorts by time, and the response's id contains it."""

    id = models.CharField(primary_key=True, max_length=32, editable=False)
    state = models.CharField(max_length=10, choices=JobState.choices, default=JobState.PENDING)
    version = models.PositiveIntegerField(default=1, editable=False)
    path = models.CharField(max_length=60, help_text="the API path it was sent to")
    model = models.CharField(max_length=200)
    stream = models.BooleanField(default=False)
    asynchronous = models.BooleanField(default=False)
    priority = models.SmallIntegerField(default=0)
    # No database constraint on what is written behind: a key or a node deleted meanwhile must not cost a
    # whole batch of records.
    key = models.ForeignKey(
        "api.ApiKey",
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        db_constraint=False,
        db_index=False,  # (key, -id) serves
        related_name="jobs",
    )
    node = models.ForeignKey(
        "nodes.Node",
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        db_constraint=False,
        related_name="jobs",
    )
    # The web process whose caller waits: who can be told to stop, and whose death ends the job.
    web = models.CharField(max_length=16, blank=True, editable=False)
    attempt_count = models.PositiveSmallIntegerField("attempts", default=0)
    why = models.CharField("why this node", max_length=300, blank=True)

    created_at = models.DateTimeField(default=timezone.now)
    placed_at = models.DateTimeField(null=True, blank=True)
    first_token_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    prompt_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    http_status = models.PositiveSmallIntegerField(null=True, blank=True)
    error_code = models.CharField(max_length=60, blank=True)
    error_message = models.CharField(max_length=500, blank=True)

    # Kept for asynchronous jobs only: the request until it has its answer (for a while, if it got none), the
    # result until a while after its owner has first read it, or its time is over.
    request = models.BinaryField(null=True, blank=True, editable=False)
    result = models.BinaryField(null=True, blank=True, editable=False)
    result_read_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["state", "created_at"]),
            models.Index(fields=["key", "-id"]),
            models.Index(fields=["model", "-id"]),
            models.Index(fields=["finished_at"]),
            models.Index(
                fields=["finished_at", "result_read_at"],
                condition=models.Q(result__isnull=False),
                name="jobs_with_a_result",
            ),
            models.Index(
                fields=["finished_at"],
                condition=models.Q(request__isnull=False),
                name="jobs_with_a_request",
            ),
        ]

    def __str__(self) -> str:
        return self.id


class Attempt(models.Model):
    """One placement of a job on a node."""

    job = models.ForeignKey(
        Job,
        on_delete=models.CASCADE,
        db_constraint=False,
        db_index=False,  # (job, number) serves
        related_name="attempts",
    )
    number = models.PositiveSmallIntegerField()
    node = models.ForeignKey(
        "nodes.Node",
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        db_constraint=False,
        related_name="attempts",
    )
    lease = models.CharField(max_length=32, editable=False)
    outcome = models.CharField(max_length=40, blank=True, help_text="empty while it runs")
    reason = models.CharField(max_length=500, blank=True)
    claimed_at = models.DateTimeField(default=timezone.now)
    placed_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["job", "number"]
        constraints = [models.UniqueConstraint(fields=["job", "number"], name="one_row_per_attempt")]

    def __str__(self) -> str:
        return f"attempt {self.number} at {self.job_id}"


class Submission(models.Model):
    """Which job a caller's ``Idempotency-Key`` stands for. Hashes, see `jobs.idempotency`."""

    name = models.CharField(primary_key=True, max_length=32, editable=False)
    asked = models.CharField(max_length=32, editable=False)
    job = models.OneToOneField(Job, on_delete=models.CASCADE, db_constraint=False, related_name="submission")
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    def __str__(self) -> str:
        return self.name


class StoredFile(models.Model):
    """A file under ``/v1/files``: in the database, since every web process and the jobworker must reach it,
    in pieces (`FileChunk`), since nobody should hold it whole. Written by `jobs.files`."""

    id = models.CharField(primary_key=True, max_length=40, editable=False)
    key = models.ForeignKey(
        "api.ApiKey", null=True, on_delete=models.SET_NULL, db_constraint=False, related_name="files"
    )
    filename = models.CharField(max_length=255)
    purpose = models.CharField(max_length=20)
    size = models.PositiveBigIntegerField("bytes", default=0)
    complete = models.BooleanField(default=False, help_text="nothing more is added; seen by its owner")
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["key", "-id"]), models.Index(fields=["expires_at"])]

    def __str__(self) -> str:
        return self.id


class FileChunk(models.Model):
    """A piece of a file: the bytes from `start` on."""

    file = models.ForeignKey(StoredFile, on_delete=models.CASCADE, related_name="chunks")
    start = models.PositiveBigIntegerField()
    data = models.BinaryField()

    class Meta:
        ordering = ["file", "start"]
        constraints = [models.UniqueConstraint(fields=["file", "start"], name="one_chunk_per_place")]

    def __str__(self) -> str:
        return f"{self.file_id} from {self.start}"


class BatchStatus(models.TextChoices):
    VALIDATING = "validating", "validating"
    IN_PROGRESS = "in_progress", "in progress"
    FINALIZING = "finalizing", "finalizing"
    COMPLETED = "completed", "completed"
    FAILED = "failed", "failed"
    EXPIRED = "expired", "expired"
    CANCELLING = "cancelling", "cancelling"
    CANCELLED = "cancelled", "cancelled"


BATCH_ENDS = frozenset(
    {BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED}
)


class Batch(models.Model):
    """A file of requests, worked off one after another. `status` is written by `jobs.batches` alone."""

    id = models.CharField(primary_key=True, max_length=40, editable=False)
    key = models.ForeignKey(
        "api.ApiKey", null=True, on_delete=models.SET_NULL, db_constraint=False, related_name="batches"
    )
    status = models.CharField(max_length=12, choices=BatchStatus.choices, default=BatchStatus.VALIDATING)
    # What it is to become when the last line has its answer.
    ends_as = models.CharField(max_length=12, blank=True, editable=False)
    version = models.PositiveIntegerField(default=1, editable=False)
    endpoint = models.CharField(max_length=60)
    # Ids only: a batch is still shown when its files are gone.
    input_file = models.CharField(max_length=40)
    output_file = models.CharField(max_length=40, blank=True)
    error_file = models.CharField(max_length=40, blank=True)
    output_seconds = models.PositiveIntegerField(
        default=0, help_text="how long what it wrote is kept from its end; 0: as any file"
    )
    metadata = models.JSONField(default=dict, blank=True)
    errors = models.JSONField(default=list, blank=True)

    # How far the input has been read: bytes, and lines with empty ones.
    read_bytes = models.PositiveBigIntegerField(default=0, editable=False)
    read_lines = models.PositiveIntegerField(default=0, editable=False)
    total = models.PositiveIntegerField(default=0)
    completed = models.PositiveIntegerField(default=0)
    failed = models.PositiveIntegerField(default=0)
    prompt_tokens = models.PositiveBigIntegerField(default=0)
    completion_tokens = models.PositiveBigIntegerField(default=0)

    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    in_progress_at = models.DateTimeField(null=True, blank=True)
    finalizing_at = models.DateTimeField(null=True, blank=True)
    cancelling_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "batches"
        indexes = [models.Index(fields=["key", "-id"]), models.Index(fields=["status", "id"])]

    def __str__(self) -> str:
        return self.id


class BatchLine(models.Model):
    """A line of a batch's input that is under way: gone when its answer is in a file."""

    batch = models.ForeignKey(Batch, on_delete=models.CASCADE, related_name="lines")
    number = models.PositiveIntegerField(help_text="counted from 1")
    custom_id = models.CharField(max_length=512)
    job_id = models.CharField(max_length=32)

    class Meta:
        ordering = ["batch", "number"]
        constraints = [models.UniqueConstraint(fields=["batch", "number"], name="each_line_once")]

    def __str__(self) -> str:
        return f"line {self.number} of {self.batch_id}"
