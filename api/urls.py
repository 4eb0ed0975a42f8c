"""Callers' paths."""

from django.urls import path, re_path

from api import views

urlpatterns = [
    path("v1/completions", views.CompletionView.as_view()),
    path("v1/chat/completions", views.CompletionView.as_view()),
    path("v1/models", views.ModelsView.as_view()),
    path("v1/models/<path:model>", views.ModelView.as_view()),
    path("jobs", views.JobsView.as_view()),
    path("jobs/<str:job>", views.JobView.as_view()),
    path("workers", views.WorkersView.as_view()),
    re_path(
        r"^workers/(?P<node>[\w.-]+)/models/(?P<verb>load|unload|pin|unpin)$", views.WorkerModelView.as_view()
    ),
    re_path(r"^workers/(?P<node>[\w.-]+)/(?P<verb>approve|drain|resume|revoke)$", views.WorkerView.as_view()),
    path("cluster/status", views.ClusterStatusView.as_view()),
    path("healthz", views.HealthView.as_view()),
    path("readyz", views.ReadyView.as_view()),
]
