"""Steps: what an operator can have done to rows, from their list or from the page of one.

Each is asked about on a page that says what will happen to which rows, done by a POST, and noted in the log
with who did it. What a row refuses is told in words. Whoever may change such rows may take steps, though
nobody edits the rows themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import redis
from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from unfold.enums import ActionVariant

from nodes import registry
from nodes.backoffice import shown_once
from nodes.backoffice.rows import Rows, audit

CONFIRMED: Final = "confirmed"
REDIS_AWAY: Final = "Redis is away, try again"


@dataclass(frozen=True)
class Result:
    """What came of a step for one row."""

    row: Any
    refused: str = ""  # why nothing was done
    note: str = ""  # added to what is logged
    secret: str = ""  # shown once to who asked


@dataclass(frozen=True, kw_only=True)
class Step:
    """`do` is given the request and the rows; `possible` says whether a row's page offers it."""

    name: str
    title: str
    done: str
    what: str  # will happen, in a sentence
    do: Callable[[HttpRequest, list[Any]], Iterable[Result]]
    possible: Callable[[Any], bool] = lambda row: True
    hurts: bool = False
    icon: str = "play_arrow"


def each(verb: Callable[[Any, str], Any]) -> Callable[[HttpRequest, list[Any]], Iterable[Result]]:
    """A verb for one row and the name of who asks, done to row after row. It returns False where there was
    nothing to do, and may raise `Refusal` and `redis.RedisError`."""

    def do(request: HttpRequest, rows: list[Any]) -> Iterable[Result]:
        for row in rows:
            try:
                made = verb(row, request.user.get_username())
            except registry.Refusal as e:
                yield Result(row, refused=str(e))
            except redis.RedisError:
                yield Result(row, refused=REDIS_AWAY)
            else:
                state = getattr(row, "state", "")
                said = f"nothing to do, it is {state}" if state else "nothing to do"
                yield Result(row, refused="" if made is not False else said)

    return do


class Steered(Rows):
    """Rows with steps."""

    steps: Sequence[Step] = ()

    def has_steer_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(f"{self.opts.app_label}.change_{self.opts.model_name}")

    def describe(self, row: Any) -> str:
        """What there is to know of a row before a step is taken."""
        return ""

    # -- from the list -------------------------------------------------------------------------------

    def get_actions(self, request: HttpRequest) -> Any:
        actions = super().get_actions(request)
        if "_popup" not in request.GET and self.has_steer_permission(request):
            actions |= {s.name: (partial(_from_list, s), s.name, s.title) for s in self.steps}
        return actions

    # -- from a row's page ---------------------------------------------------------------------------

    def get_urls(self) -> Any:
        view = self.admin_site.admin_view(self.step_view)
        return [path("<path:object_id>/step/<slug:step>/", view, name=self._view_name), *super().get_urls()]

    @property
    def _view_name(self) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_step"

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> Any:
        row = kwargs.get("obj")
        if row is not None and self.has_steer_permission(request):
            context["actions_detail"] = [self._button(row, s) for s in self.steps if s.possible(row)]
        return super().render_change_form(request, context, *args, **kwargs)

    def _button(self, row: Model, step: Step) -> dict[str, Any]:
        return {
            "title": step.title,
            "icon": step.icon,
            "variant": ActionVariant.DANGER if step.hurts else ActionVariant.DEFAULT,
            "attrs": {},
            "dialog": None,
            "path": reverse(f"admin:{self._view_name}", args=[row.pk, step.name]),
        }

    def step_view(self, request: HttpRequest, object_id: str, step: str) -> HttpResponse:
        """GET asks, POST does it."""
        found = next((s for s in self.steps if s.name == step), None)
        row: Any = self.get_object(request, unquote(object_id))
        if found is None or row is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)
        if not self.has_steer_permission(request):
            raise PermissionDenied
        back = reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_change", args=[row.pk])
        if request.method == "POST":
            return self.take(request, found, [row], back) or HttpResponseRedirect(back)
        return self.ask(request, found, [row], back)

    # -- both ----------------------------------------------------------------------------------------

    def ask(
        self, request: HttpRequest, step: Step, rows: list[Any], back: str, *, listed: bool = False
    ) -> HttpResponse:
        """The page that says what will happen, and whose form does it."""
        many = len(rows) != 1
        name = self.opts.verbose_name_plural if many else self.opts.verbose_name
        context = {
            **self.admin_site.each_context(request),
            "title": f"{step.title}: {f'{len(rows)} {name}' if many else rows[0]}",
            "opts": self.opts,
            "media": self.media,
            "step": step,
            "rows": [(row, self.describe(row), step.possible(row)) for row in rows],
            "checkbox": ACTION_CHECKBOX_NAME if listed else "",
            "confirmed": CONFIRMED,
            "back": back,
        }
        return TemplateResponse(request, "backoffice/confirm.html", context)

    def take(self, request: HttpRequest, step: Step, rows: list[Any], back: str) -> HttpResponse | None:
        """Do it, note it, and say what came of it. A page, if there are secrets to be shown."""
        made: list[Result] = []
        for result in step.do(request, rows):
            if result.refused:
                self.message_user(request, f"{result.row}: {result.refused}", messages.WARNING)
                continue
            made.append(result)
            audit(request, result.row, f"{step.done}{result.note and ' '}{result.note}")
        if made:
            names = ", ".join(f"{r.row}{r.note and f' ({r.note})'}" for r in made)
            self.message_user(request, f"{step.done}: {names}", messages.SUCCESS)
        if secrets := [(str(r.row), r.secret) for r in made if r.secret]:
            return shown_once.page(request, self, secrets, back)
        return None


def _from_list(step: Step, admin: Steered, request: HttpRequest, rows: QuerySet[Any]) -> HttpResponse | None:
    """Those rows alone that were ticked, never a whole table."""
    if not admin.has_steer_permission(request):
        raise PermissionDenied
    ticked = rows.filter(pk__in=request.POST.getlist(ACTION_CHECKBOX_NAME)[: admin.list_max_show_all])
    found, back = list(ticked), request.get_full_path()
    if not found:
        admin.message_user(request, "None of these rows is there any more", messages.WARNING)
        return None
    if CONFIRMED in request.POST:
        return admin.take(request, step, found, back)
    return admin.ask(request, step, found, back, listed=True)
