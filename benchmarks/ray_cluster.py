"""Workers of a table as tasks of a Ray cluster; needs the extra `ray`.

The results folder must be one that every node sees, and the checkout must lie at the
same path on every node.
"""

import os
import pathlib
import sys
from collections.abc import Hashable
from typing import Any

from benchmarks import fanout, origin

LOCAL = "local"


class RayCluster:
    """Workers as Ray tasks, each in a process of its own.

    Attributes:
        workers: How many the cluster has room for: one for each GPU; where there is
            none, one for each node, since JAX uses all cores of a node.
    """

    def __init__(self, address: str) -> None:
        """Joins a cluster.

        Args:
            address: Of its head, as `ray.init` takes it; `auto` for the cluster that
                this machine belongs to, `local` for a cluster of this machine alone.

        Raises:
            ModuleNotFoundError: If Ray is not installed.
        """
        try:
            import ray  # pyrefly: ignore[missing-import]  # an extra of its own
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "benchmarks: --ray needs Ray. Install it with "
                "`pip install -e '.[bench,ray]'`, or use --workers."
            ) from error
        paths = [str(origin.ROOT), *(path for path in sys.path if path)]
        environment = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
        ray.init(
            address=address,
            runtime_env={"env_vars": environment},
            include_dashboard=False if address == LOCAL else None,
            log_to_driver=True,
        )
        self._ray: Any = ray
        self._running: list[Any] = []
        self._gpus = int(ray.cluster_resources().get("GPU", 0))
        alive = [node for node in ray.nodes() if node["Alive"]]
        self.workers = self._gpus or len(alive)

    def start(self, request: fanout.Request, name: str) -> Hashable:
        """Submits a worker, spread over the nodes; Ray itself never retries it."""
        task = self._ray.remote(
            num_cpus=1,
            num_gpus=1 if self._gpus else 0,
            max_retries=0,
            max_calls=1,
            scheduling_strategy="SPREAD",
        )(_work)
        handle = task.remote(request, name)
        self._running.append(handle)
        return handle

    def ended(self) -> fanout.Ending:
        """Waits for the next worker that ends."""
        (handle,), self._running = self._ray.wait(self._running, num_returns=1)
        try:
            return fanout.Ending(handle, self._ray.get(handle))
        except self._ray.exceptions.RayError:
            return fanout.Ending(handle, None)  # its process or its node is gone

    def stop(self) -> None:
        """Cancels what is left and leaves the cluster."""
        for handle in self._running:
            self._ray.cancel(handle, force=True)
        self._ray.shutdown()


def _work(request: fanout.Request, name: str) -> str:
    """A worker on a node; paths are relative to the checkout there."""
    os.chdir(pathlib.Path(origin.ROOT))
    return fanout.work(request, name)
