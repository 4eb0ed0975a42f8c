"""The socket of the dashboard: who is let in, what comes, and who is sent away."""

from __future__ import annotations

from tests.dashboard.conftest import Page


async def test_the_state_comes_first_and_then_what_changes(hub, staff):
    page = Page(hub, staff)
    assert await page.open()
    first = await page.message()
    assert set(first["parts"]) == {"health", "figures", "models", "jobs", "events", "listing"}
    assert "No GPU host has joined yet" in first["parts"]["health"]
    second = await page.message()
    assert set(second) == {"at"}
    assert second["at"] > first["at"]
    await page.close()
