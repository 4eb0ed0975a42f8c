"""Callers' paths."""

from django.urls import path, re_path
from django.views.decorators.http import require_safe

from api import batches, files, jobs, metrics, usage_view, views
from api.openapi import views as openapi
from nodes.steering import MODEL_VERBS, NODE_VERBS

_NODE_VERBS, _MODEL_VERBS = "|".join(NODE_VERBS), "|".join(MODEL_VERBS)

urlpatterns = [
    path("v1/completions", views.CompletionView.as_view()),
    path("v1/chat/completions", views.CompletionView.as_view()),
    path("v1/responses", views.CompletionView.as_view()),
    path("v1/responses/<str:response_id>", views.ResponseView.as_view()),
    path("v1/responses/<str:response_id>/input_items", views.ResponseItemsView.as_view()),
    path("v1/responses/<str:response_id>/cancel", views.ResponseCancelView.as_view()),
    path("v1/embeddings", views.CompletionView.as_view()),
    path("tokenize", views.CompletionView.as_view()),
    path("detokenize", views.CompletionView.as_view()),
    path("v1/models", views.ModelsView.as_view()),
    path("v1/models/<path:model>", views.ModelView.as_view()),
    path("v1/files", files.FilesView.as_view()),
    path("v1/files/<str:file>", files.FileView.as_view()),
    path("v1/files/<str:file>/content", files.FileContentView.as_view()),
    path("v1/batches", batches.BatchesView.as_view()),
    path("v1/batches/<str:batch>", batches.BatchView.as_view()),
    path("v1/batches/<str:batch>/cancel", batches.BatchCancelView.as_view()),
    path("jobs", jobs.JobsView.as_view()),
    path("jobs/<str:job>", jobs.JobView.as_view()),
    path("v1/usage", usage_view.UsageView.as_view()),
    path("workers", views.WorkersView.as_view()),
    re_path(rf"^workers/(?P<node>[\w.-]+)/models/(?P<verb>{_MODEL_VERBS})$", views.WorkerModelView.as_view()),
    re_path(rf"^workers/(?P<node>[\w.-]+)/(?P<verb>{_NODE_VERBS})$", views.WorkerView.as_view()),
    path("cluster/status", views.ClusterStatusView.as_view()),
    path("schema", openapi.SchemaView.as_view()),
    path("docs", require_safe(openapi.docs), name="docs"),
    path("metrics", metrics.MetricsView.as_view()),
    path("healthz", views.HealthView.as_view()),
    path("readyz", views.ReadyView.as_view()),
]
