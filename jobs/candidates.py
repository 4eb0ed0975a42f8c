"""The nodes that offer a model, from the snapshot, as routing wants them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from jobs.breaker import Breaker
from jobs.scoring import Candidate
from nodes.view import Snapshot


def candidates(
    snapshot: Snapshot,
    in_flight: Mapping[str, int],
    breakers: Mapping[str, Breaker],
    model: str,
    only: Collection[str] | None = None,
) -> list[Candidate]:
    """`in_flight` counts attempts by ``node/model``; `breakers` has those that are not closed; `only` are the
    nodes that may see the job, None: all."""
    leased = snapshot.leased
    return [
        Candidate(
            node=node.id,
            state=m.state,
            takes_work=node.takes_work and node.id in leased,
            slots=m.slots,
            in_flight=in_flight.get(f"{node.id}/{model}", 0),
            kv_cache_usage=m.kv_cache_usage,
            ttft_ms=m.ttft_ms,
            weight=m.weight,
            weight_from=m.weight_from,
            max_model_len=m.max_model_len,
            fits=m.fits,
            need=m.need,
            memory_free=max(0, node.memory_budget - node.memory_used),
            reason=m.reason,
            breaker=breakers[place].state if (place := f"{node.id}/{model}") in breakers else "",
        )
        for node, m in snapshot.by_model.get(model, ())
        if only is None or node.id in only
    ]
