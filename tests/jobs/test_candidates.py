from __future__ import annotations

from jobs.candidates import candidates
from nodes import view
from worker_agent.contract import ModelState, lease_key


def offer(wire, id_: str, speed: float) -> view.NodeView:
    wire.set(lease_key(id_), "1")
    model = view.ModelView("m", ModelState.READY, 4, 8192, 0.0, 20.0, True, 0, "", 1.0, "L40S", speed)
    return view.NodeView(id_, id_, "online", 1, [model], 0, 0, 0.0)


async def test_weights_are_corrected_by_what_the_nodes_of_a_model_show(wire, pipe):
    view.publish(wire, [offer(wire, "a", 100.0), offer(wire, "b", 100.0), offer(wire, "c", 60.0)])
    snapshot = view.Snapshot()
    await snapshot.refresh(pipe)
    found = {c.node: c for c in candidates(snapshot, {"c/m": 2}, {}, "m")}
    assert {name: c.weight for name, c in found.items()} == {"a": 1.0, "b": 1.0, "c": 0.6}
    assert found["c"].weight_from == "L40S, measured x0.60"
    assert (found["c"].in_flight, found["c"].max_model_len, found["c"].takes_work) == (2, 8192, True)
