"""The app of jobs: one completion, from being accepted to its one end."""

from django.apps import AppConfig


class JobsConfig(AppConfig):
    name = "jobs"
    verbose_name = "Jobs"
