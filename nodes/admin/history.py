"""What happened to hosts, and their figures over time, in the admin."""

from __future__ import annotations

from django.contrib import admin
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import display

from nodes.admin.colours import NODE_COLOURS
from nodes.backoffice import filters, words
from nodes.backoffice.rows import JOIN, ReadOnly
from nodes.models import NodeEvent, NodeSample, NodeState


@admin.register(NodeSample)
class NodeSampleAdmin(ReadOnly):
    list_display = [
        words.when("at", "when"),
        "node",
        "in_flight",
        "waiting",
        words.measured("tokens_per_s", "tokens/s", ""),
        words.measured("ttft_ms", "first token", "ms"),
        words.share_of("kv_cache_usage", "KV cache used"),
        words.share_of("gpu_utilisation", "GPU"),
        words.measured("gpu_temperature_c", "temperature", "°C"),
        words.bytes_of("vram_used", "VRAM used"),
        words.share_of("cpu_usage", "CPU"),
    ]
    list_filter = [("node", AutocompleteSelectFilter), filters.since("time", lambda at: {"at__gte": at})]
    list_select_related = ["node"]
    when_empty = "Each beat of a node brings its figures."
    way_on = JOIN


@admin.register(NodeEvent)
class NodeEventAdmin(ReadOnly):
    when_empty = "What happens to hosts is noted here, from the first one that joins."
    way_on = JOIN
    list_display = [words.when("at", "when"), "node", "change", "reason"]
    list_filter = [
        ("node", AutocompleteSelectFilter),
        filters.one_of("now", "state it led to", lambda: NodeState.choices),
        filters.since("time", lambda at: {"at__gte": at}),
    ]
    search_fields = ["node__name", "reason"]
    list_select_related = ["node"]

    @display(description="state")
    def change(self, event: NodeEvent) -> str:
        if event.was == event.now or not event.now:
            return words.NONE
        return words.badge(f"{event.was or 'new'} → {event.now}", NODE_COLOURS.get(event.now, ""))
