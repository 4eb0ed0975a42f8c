"""Agents' paths, as the contract has them."""

from django.urls import path

from nodes import agent_api, agent_files
from worker_agent import contract

urlpatterns = [
    path(contract.REGISTER.removeprefix("/"), agent_api.RegisterView.as_view()),
    path(contract.HEARTBEAT.removeprefix("/"), agent_api.HeartbeatView.as_view()),
    path(contract.GOODBYE.removeprefix("/"), agent_api.GoodbyeView.as_view()),
    path("agent/<str:filename>", agent_files.agent_wheel, name="agent-wheel"),
]
