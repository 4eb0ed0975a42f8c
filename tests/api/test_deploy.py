"""What deploy/ and docs/ say of the metrics, against the metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.api import promtool

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
TOKEN = {"Authorization": "Bearer for-prometheus"}


@pytest.fixture
async def families(serve, settings):
    settings.METRICS_TOKEN = "for-prometheus"
    page = (await (await serve()).get("/metrics", headers=TOKEN)).text
    return dict(re.findall(r"^# TYPE (\S+) (\w+)$", page, re.MULTILINE))


async def test_alerts_and_dashboard_ask_for_what_there_is(families):
    samples = {
        name + suffix
        for name, kind in families.items()
        for suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
    }
    for file in ("prometheus-alerts.yml", "grafana-dashboard.json"):
        asked = set(re.findall(r"gputorrent_\w+", (DEPLOY / file).read_text(encoding="utf-8")))
        assert len(asked) > 10
        assert asked <= samples, file


async def test_the_documentation_names_each_metric_and_no_other(families):
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    table = text.split("## What there is")[1].split("\n## ")[0]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {f"gputorrent_{name}" for cell in first for name in re.findall(r"`(\w+)`", cell)}
    assert named == families.keys()


def test_each_alert_is_explained():
    rules = (DEPLOY / "prometheus-alerts.yml").read_text(encoding="utf-8")
    alerts = set(re.findall(r"- alert: (\w+)", rules))
    explained = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").split("## What to do")[1]
    assert alerts == set(re.findall(r"`([A-Z]\w+)`", explained))


def test_the_dashboard_is_what_grafana_takes():
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8"))
    panels = board["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    for panel in panels:
        assert panel["type"] == "row" or all(t["expr"] for t in panel["targets"])
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24


@promtool.needs_promtool
def test_prometheus_takes_the_rules_and_the_configuration():
    assert "SUCCESS" in promtool.check("rules", str(DEPLOY / "prometheus-alerts.yml"))
    assert "SUCCESS" in promtool.check("config", str(DEPLOY / "prometheus.yml"))
