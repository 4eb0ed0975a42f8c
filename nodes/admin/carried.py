"""What hosts carry, in the admin: GPUs, and models with what can be asked for them."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesDropdownFilter
from unfold.decorators import display

from nodes import steering
from nodes.admin.colours import MODEL_COLOURS
from nodes.backoffice import filters, words
from nodes.backoffice.rows import JOIN, ReadOnly
from nodes.backoffice.steps import Steered, Step, each
from nodes.models import Gpu, NodeModel
from worker_agent.contract import ModelState


def model_names() -> Any:
    """Names of the models that nodes offer."""
    return NodeModel.objects.order_by("name").values_list("name", flat=True).distinct()


def gpu_names() -> Any:
    """Names of the GPUs that there are."""
    return Gpu.objects.order_by("name").values_list("name", flat=True).distinct()


@display(description="VRAM free", ordering="vram_free")
def vram(gpu: Gpu) -> str:
    return words.share(gpu.vram_free, gpu.vram_total)


context = words.measured("max_model_len", "context", "tokens")
sensors = [words.measured("temperature_c", "temperature", "°C"), words.measured("power_w", "power", "W")]


@admin.register(NodeModel)
class NodeModelAdmin(Steered, ReadOnly):
    when_empty = "Models come with the hosts that offer them."
    way_on = JOIN
    list_display = [
        "name",
        "node",
        "shown_state",
        "slots",
        "running",
        "waiting",
        "pinned",
        "speed",
        "first_token",
        words.share_of("kv_cache_usage", "KV cache"),
    ]
    list_filter = [
        ("state", ChoicesDropdownFilter),
        filters.one_of("name", "model", model_names),
        ("node", AutocompleteSelectFilter),
        "pinned",
    ]
    search_fields = ["name", "node__name"]
    list_select_related = ["node"]
    fieldsets = [
        (
            None,
            {"fields": ["name", "node", "shown_state", "reason", "pinned", words.when("updated_at", "seen")]},
        ),
        (
            "Load",
            {
                "fields": [
                    "slots",
                    "running",
                    "waiting",
                    words.share_of("kv_cache_usage", "KV cache used"),
                    "speed",
                    "first_token",
                ]
            },
        ),
        (
            "Memory",
            {
                "fields": [
                    words.bytes_of("need"),
                    "need_measured",
                    "fits",
                    words.bytes_of("vram_used", "VRAM used"),
                ]
            },
        ),
        ("Engine", {"fields": ["engine", context, "loaded_in"]}),
    ]
    readonly_fields = ["shown_state", "speed", "first_token", "loaded_in"]
    steps = [
        Step(
            name="load",
            title="Load",
            done="Asked to load",
            icon="download",
            what="The node loads it, which takes a while; idle models that are not pinned make room.",
            do=each(lambda row, by: steering.load(row.node, row.name, by)),
            possible=lambda row: row.state != ModelState.READY,
        ),
        Step(
            name="unload",
            title="Unload",
            done="Asked to unload",
            icon="eject",
            what="The node finishes what runs with it and frees its memory. The next request may have it "
            "loaded again.",
            do=each(lambda row, by: steering.unload(row.node, row.name, by)),
            possible=lambda row: row.state == ModelState.READY,
        ),
        Step(
            name="pin",
            title="Pin",
            done="Pinned",
            icon="keep",
            what="It is never unloaded to make room for another, over restarts too.",
            do=each(lambda row, by: steering.pin(row.node, row.name, by)),
            possible=lambda row: not row.pinned,
        ),
        Step(
            name="unpin",
            title="Unpin",
            done="Unpinned",
            icon="keep_off",
            what="It may be unloaded to make room for another.",
            do=each(lambda row, by: steering.unpin(row.node, row.name, by)),
            possible=lambda row: row.pinned or row.pin_wanted,
        ),
    ]

    def has_steer_permission(self, request: HttpRequest) -> bool:
        """Who may steer nodes may steer what they carry."""
        return request.user.has_perm("nodes.change_node")

    def describe(self, row: NodeModel) -> str:
        return f"{row.state}, {row.running} requests running" + (", pinned" if row.pinned else "")

    @display(description="state", ordering="state")
    def shown_state(self, row: NodeModel) -> str:
        loading = row.state == ModelState.LOADING and row.progress
        text = f"{row.state} {words.percent(row.progress)}" if loading else row.state
        return words.badge(text, MODEL_COLOURS.get(row.state, ""))

    @display(description="tokens/s", ordering="tokens_per_s")
    def speed(self, row: NodeModel) -> str:
        return f"{row.tokens_per_s:.0f}" if row.tokens_per_s else words.NONE

    @display(description="first token", ordering="ttft_ms")
    def first_token(self, row: NodeModel) -> str:
        return words.duration(row.ttft_ms / 1000) if row.ttft_ms else words.NONE

    @display(description="loaded in", ordering="load_seconds")
    def loaded_in(self, row: NodeModel) -> str:
        return words.duration(row.load_seconds) if row.load_seconds else words.NONE


@admin.register(Gpu)
class GpuAdmin(ReadOnly):
    when_empty = "GPUs come with their hosts. One without any computes on its CPU."
    way_on = JOIN
    list_display = [
        "name",
        "node",
        "index",
        vram,
        words.share_of("utilisation"),
        *sensors,
        "driver",
        words.named("compute_capability", "CUDA level"),
    ]
    list_filter = [filters.one_of("name", "GPU", gpu_names), ("node", AutocompleteSelectFilter)]
    search_fields = ["name", "node__name", "uuid"]
    list_select_related = ["node"]
