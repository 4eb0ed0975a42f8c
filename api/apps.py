"""The OpenAI-shaped door, and the keys that open it."""

from django.apps import AppConfig


class ApiConfig(AppConfig):
    name = "api"
    verbose_name = "API"
