"""The fan-out on a Ray cluster of two nodes, both on this machine."""

import os
import sys

import pytest

from benchmarks import fanout
from benchmarks.ray_cluster import RayCluster
from tests.benchmarks.fanned import finished, ran, request


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_nodes_share_the_rows_and_outlive_a_worker_that_is_killed(
    tmp_path, monkeypatch
):
    # Loopback alone: Ray otherwise puts this machine's own address in its place.
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    pytest.importorskip("ray", reason="Ray is an extra of its own: pip install ray")
    from ray.cluster_utils import Cluster

    node = {
        "num_cpus": 1,
        "object_store_memory": 80 * 2**20,
        "node_ip_address": "127.0.0.1",
    }
    head = node | {"include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(**node)
        backend = RayCluster(cluster.address)
        assert backend.workers == 2
        died = fanout.run(request(tmp_path, kills=1), backend, backend.workers)
    finally:
        cluster.shutdown()
    assert died == 1
    by, rows = ran(tmp_path), {f"row-{n}" for n in range(6)} | {"total"}
    assert set(finished(tmp_path)) == set(by) == rows
    assert len(by.pop("row-1")) == 2
    assert all(len(who) == 1 for who in by.values()), by
    assert str(os.getpid()) not in {who for each in by.values() for who in each}


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match="--ray needs Ray. Install it with"):
        RayCluster("auto")
