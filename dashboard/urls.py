"""Pages of the admin that are not lists of rows. Behind the admin's login."""

from django.contrib import admin
from django.urls import path

from dashboard import views

urlpatterns = [
    path("", admin.site.admin_view(views.index)),  # before the admin's own, which keeps the name admin:index
    path("history", admin.site.admin_view(views.curves), name="dashboard-history"),
]
