"""Pages of the admin that are not lists of rows. Behind the admin's login."""

from typing import Any

from django.contrib import admin
from django.urls import path, re_path

from dashboard import join, playground, views

urlpatterns: list[Any] = [
    path("", admin.site.admin_view(views.index)),  # before the admin's own, which keeps the name admin:index
    path("history", admin.site.admin_view(views.curves), name="dashboard-history"),
    path("playground/", playground.playground, name="playground"),
    path("playground/models", playground.models, name="playground-models"),
    path("playground/jobs/<str:job>", playground.job, name="playground-job"),
    re_path(r"^playground/(?P<path>v1/(?:chat/)?completions)\Z", playground.ask, name="playground-ask"),
    path("join/", join.join, name="join"),
    path("join/<int:token>/", join.follow, name="join-follow"),
    path("join/<int:token>/state", join.state, name="join-state"),
    path("join/<int:token>/approve/<str:node>", join.approve, name="join-approve"),
]
