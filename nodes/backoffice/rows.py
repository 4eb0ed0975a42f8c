"""Lists and pages of rows that agents or the system write, and the log of who did what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

from django.contrib.admin import ShowFacets
from django.contrib.admin.models import CHANGE, LogEntry
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import cached_property
from unfold.admin import ModelAdmin, TabularInline

from nodes.backoffice import zone


def audit(request: HttpRequest, row: Model, what: str) -> None:
    """Note in the admin's log who did what to which row."""
    LogEntry.objects.log_actions(request.user.pk or 0, [row], CHANGE, what, single_object=True)


class Bounded(Paginator):
    """Counts no further than `MOST`: a count over millions of rows takes longer than the page itself, and
    nobody turns over so many pages."""

    MOST = 10_000
    template_name = "backoffice/pagination.html"

    @cached_property
    def _counted(self) -> int:
        rows: QuerySet[Any] = self.object_list  # type: ignore[assignment]
        return rows[: self.MOST + 1].count()

    @property
    def more(self) -> bool:
        """Whether there are rows behind the last page."""
        return self._counted > self.MOST

    @cached_property
    def count(self) -> int:
        return min(self._counted, self.MOST)


@dataclass(frozen=True)
class WayOn:
    """A page that a list without rows leads to. `view` is an URL's name; `permission` is what it takes."""

    title: str
    view: str
    permission: str = ""

    @property
    def link(self) -> str:
        return reverse(self.view)


JOIN: Final = WayOn("Join a host", "join", "nodes.add_enrolmenttoken")
PLAYGROUND: Final = WayOn("Open the playground", "playground", "jobs.add_job")
REFERENCE: Final = WayOn("API reference", "docs")


class Rows(ModelAdmin):
    """A list of rows: filters in one form, no count beyond what is shown, nothing selected beyond a page."""

    when_empty = ""
    """Says, where there are no rows yet, what brings some."""
    way_on: WayOn | None = None
    """Where that is done; None: by adding a row, if that can be done by hand."""
    list_filter_submit = True
    list_disable_select_all = True
    list_fullwidth = True
    list_horizontal_scrollbar_top = True  # below the last row nobody would find it
    list_per_page = 50
    show_full_result_count = False
    show_facets = ShowFacets.NEVER  # each count would be a query over all rows
    paginator = Bounded

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        way = self.way_on
        allowed = way and (not way.permission or request.user.has_perm(way.permission))
        return super().changelist_view(request, {"way_on": way if allowed else None, **(extra_context or {})})

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Times in its form are the viewer's, as all others on the page."""
        with timezone.override(zone.of(request)):
            answer = super().changeform_view(request, *args, **kwargs)
            return answer.render() if isinstance(answer, TemplateResponse) else answer

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        found = super().get_changelist_instance(request)
        if not found.query and not found.has_active_filters:
            found.full_result_count = found.result_count  # nothing is left out, so nothing is said of it
        return found


class ReadOnly(Rows):
    """Rows that agents or the system write: to look at, not to edit."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Functions among the fields too."""
        named = super().get_readonly_fields(request, obj)
        shown = [f for _, options in self.fieldsets or () for f in options["fields"]]
        return [*named, *(f for f in shown if callable(f))]


class ReadOnlyInline(TabularInline):
    """Rows on another row's page, to look at."""

    extra = 0
    can_delete = False
    show_change_link = False
    hide_title = True  # which repeats what the columns say
    columns: ClassVar[list[Any]] = []
    """Fields, or functions of a row."""

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.columns

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.columns

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
