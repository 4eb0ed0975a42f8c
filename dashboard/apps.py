"""The pages of the admin that move."""

from django.apps import AppConfig


class DashboardConfig(AppConfig):
    name = "dashboard"

    def ready(self) -> None:
        from dashboard import sampling
        from jobs import tasks

        tasks.PERIODIC.append((sampling.sample, sampling.EVERY))
