"""What the page for joining a host asks: who may use the token, and what the host is to run."""

from __future__ import annotations

import datetime
import re
from typing import Any, Final
from urllib.parse import urlsplit

from django import forms
from django.core.exceptions import ValidationError

from dashboard.join_command import Wanted
from worker_agent.contract import MODEL_NAME, NODE_NAME

_HOURS: Final = ((1, "1 hour"), (24, "1 day"), (7 * 24, "1 week"), (30 * 24, "30 days"))
_ENGINES: Final = (
    ("install", "vLLM, installed by the command (NVIDIA GPU)"),
    ("python", "vLLM that is installed already"),
    ("server", "a server that already runs (Ollama, llama.cpp, SGLang, …)"),
    ("container", "vLLM's container (Docker)"),
)
_MOST_MODELS: Final = 20


class ModelsField(forms.CharField):
    """Models as the agent takes them, NAME or NAME=SOURCE, with a comma or a new line between them."""

    widget = forms.Textarea(attrs={"rows": 2, "spellcheck": "false"})

    def to_python(self, value: Any) -> Any:
        return [word for word in re.split(r"[\s,]+", value or "") if word]

    def validate(self, value: Any) -> None:
        if self.required and not value:
            raise ValidationError("Name at least one model.")
        if len(value) > _MOST_MODELS:
            raise ValidationError(f"At most {_MOST_MODELS} models.")
        for word in value:
            name, equals, source = word.partition("=")
            if not MODEL_NAME.fullmatch(name) or (equals and not source) or not word.isprintable():
                raise ValidationError(f"{word[:80]!r} is not a model: give NAME, or NAME=SOURCE.")


def check_address(value: str) -> None:
    """An address that agents can be given. Raises `ValidationError`."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValidationError("This is not an address.") from None
    plain = not (parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in {"http", "https"} or not parts.hostname or not plain or port == 0:
        raise ValidationError("Give an address like https://gpu.example.org:8000.")
    if re.search(r"[^!-~]", value):
        raise ValidationError("An address has no spaces, and letters of ASCII only.")


class JoinForm(forms.Form):
    """Errors stand at their fields."""

    loaded = ModelsField(
        label="Models",
        help_text="Loaded at the start, as far as they fit. Hugging Face ids, or NAME=FOLDER on the host; of "
        "a server that already runs NAME, or NAME=ITS_NAME_THERE.",
    )
    offered = ModelsField(
        label="More models, loaded when asked for",
        required=False,
        help_text="Need not fit beside the others.",
    )
    engine = forms.ChoiceField(label="Engine", choices=_ENGINES, initial="install")
    python = forms.CharField(
        label="Its Python", required=False, max_length=300, help_text="Such as /opt/vllm/bin/python."
    )
    server = forms.CharField(
        label="Its address",
        required=False,
        max_length=300,
        validators=[check_address],
        help_text="As the host reaches it, such as http://127.0.0.1:11434.",
    )
    address = forms.CharField(
        label="This coordinator's address",
        max_length=300,
        validators=[check_address],
        help_text="As the host reaches it.",
    )
    name = forms.CharField(
        label="Name of the node", required=False, max_length=63, help_text="Empty: the host's own."
    )
    note = forms.CharField(
        label="Note", required=False, max_length=200, help_text="Whose host it is, for the list of tokens."
    )
    hours = forms.TypedChoiceField(label="Token is good for", choices=_HOURS, coerce=int, initial=24)
    uses = forms.IntegerField(label="Hosts", min_value=1, max_value=1000, initial=1)
    needs_approval = forms.BooleanField(label="Hosts wait for approval before they get work", required=False)

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if name and not NODE_NAME.fullmatch(name):
            raise ValidationError("Letters, digits, dot, dash and underscore, at most 63.")
        return name

    def clean(self) -> dict[str, Any]:
        given = super().clean() or self.cleaned_data
        engine = given.get("engine")
        if engine in {"python", "server"} and not given.get(engine) and engine not in self.errors:
            self.add_error(engine, "This engine needs it.")
        if (given.get("python") or "").startswith("-") or not (given.get("python") or "").isprintable():
            self.add_error("python", "Give a path.")
        both = set(_names(given.get("loaded"))) & set(_names(given.get("offered")))
        if both:
            self.add_error("offered", f"{sorted(both)[0]} is named twice.")
        for field in ("loaded", "offered") if engine == "container" else ():
            if any(model.partition("=")[2].startswith(("./", "../")) for model in given.get(field) or []):
                self.add_error(field, "For the container, name a folder by its whole path.")
        return given

    @property
    def wanted(self) -> Wanted:
        """What a valid form asks for."""
        given = self.cleaned_data
        return Wanted(
            address=given["address"].rstrip("/"),
            engine=given["engine"],
            loaded=tuple(given["loaded"]),
            offered=tuple(given["offered"]),
            python=given["python"],
            server=given["server"].rstrip("/"),
            name=given["name"],
        )

    @property
    def expires_in(self) -> datetime.timedelta:
        return datetime.timedelta(hours=self.cleaned_data["hours"])


def _names(models: list[str] | None) -> list[str]:
    return [model.partition("=")[0] for model in models or []]
