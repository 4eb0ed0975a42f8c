"""The pages of the admin that move."""

from django.apps import AppConfig


class DashboardConfig(AppConfig):
    name = "dashboard"
