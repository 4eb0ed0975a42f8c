"""The OpenAI-shaped door, and the keys that open it."""

from django.apps import AppConfig


class ApiConfig(AppConfig):
    name = "api"
    verbose_name = "API"

    def ready(self) -> None:
        from api import batch_rules, limits, usage
        from jobs import accounting
        from jobs.batches import use

        accounting.keepers.append(usage.keep)
        accounting.on_deferred_end.append(limits.deferred_ended)
        use(batch_rules.RULES)
