"""`rediss://`: agents reach their inbox over TLS, with an authority of the operator's own."""

from __future__ import annotations

import sys

from gputorrent import ports
from tests.journeys.cluster import Cluster


def test_agents_work_over_tls_and_refuse_an_unknown_authority(tmp_path):
    front, folder = ports.any_free(), tmp_path / "tls"
    folder.mkdir()
    public = {"GPUTORRENT_REDIS_PUBLIC_URL": f"rediss://127.0.0.1:{front}/0"}
    with Cluster(tmp_path, **public) as cluster:
        command = [
            sys.executable,
            "-m",
            "tests.journeys.tls",
            str(folder),
            str(front),
            str(cluster.redis.port),
        ]
        tls = cluster.start("tls", command)
        cluster.until(lambda: not ports.is_free(front), "the TLS front listens", 20, tls)
        cluster.agent_ready("one", arguments=("--redis-ca", str(folder / "ca.pem")))
        assert cluster.chat("over tls", max_tokens=2).json()["choices"][0]["message"]["content"] == "over tls"
        stranger = cluster.start_agent("two")
        cluster.until(
            lambda: "certificate" in stranger.output().lower(), "it distrusts the authority", 20, stranger
        )
