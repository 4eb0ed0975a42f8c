"""Pages of the admin that are not lists of rows. Behind the admin's login."""

from typing import Any

urlpatterns: list[Any] = []
