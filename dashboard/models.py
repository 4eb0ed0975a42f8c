"""The history of the whole cluster, so that there are curves even of a time when nobody watched."""

from __future__ import annotations

from django.db import models


class Sample(models.Model):
    """What went through the cluster from `at` on, for `span` seconds. Written by `dashboard.sampling`.

    Counts, not rates, and times to first token as a histogram (bucket's bound -> how many): samples are added
    up as they age, and nothing gets less exact by that. Means of the levels are over what was seen.
    """

    at = models.DateTimeField()
    span = models.PositiveSmallIntegerField()
    covered = models.PositiveSmallIntegerField(help_text="seconds of the span that were counted")
    requests = models.PositiveBigIntegerField(default=0)
    errors = models.PositiveBigIntegerField(default=0)
    prompt_tokens = models.PositiveBigIntegerField(default=0)
    completion_tokens = models.PositiveBigIntegerField(default=0)
    first_tokens = models.JSONField(default=dict)
    waiting = models.FloatField(null=True)
    running = models.FloatField(null=True)
    nodes = models.FloatField(null=True)

    class Meta:
        ordering = ["at"]
        constraints = [models.UniqueConstraint(fields=["span", "at"], name="one_sample_per_span_and_moment")]
        indexes = [models.Index(fields=["at"])]

    def __str__(self) -> str:
        return f"{self.span} s from {self.at:%Y-%m-%d %H:%M:%S}"
