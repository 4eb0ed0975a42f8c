"""Agents' reports on asynchronous work."""

from django.urls import path

from jobs import views
from worker_agent import contract

urlpatterns = [path(contract.REPORT.removeprefix("/"), views.ReportView.as_view())]
