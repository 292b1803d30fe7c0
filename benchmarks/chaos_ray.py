"""Ray for `chaos.py`: with workers from the nursery, and as a cluster whose nodes can be lost."""

import contextlib
import os
import signal
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from nursery import Nursery


class KeptCluster:
    """A cluster of this machine in a process of its own, which outlives drivers.

    Its head has no cores, so that it runs no trial.
    """

    def __init__(self, nursery: Nursery, nodes: int, cpus: int) -> None:
        here, there = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            here.close()
            nursery.use()
            _keep_cluster(there, nodes, cpus)
            os._exit(0)
        there.close()
        self._pipe = here
        self.address: str = self._pipe.recv()

    def ask(self, order: str) -> int:
        """`add` a node, `lose N` the N-th, `end` all; the number of nodes then."""
        self._pipe.send(order)
        return int(self._pipe.recv())

    def close(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self.ask("end")
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _keep_cluster(pipe: Connection, nodes: int, cpus: int) -> None:
    # a killed driver has cost enough: no process starts before it is needed
    os.environ["RAY_prestart_worker_first_driver"] = "0"  # noqa: SIM112
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False},
    )
    added = [cluster.add_node(num_cpus=cpus) for _ in range(nodes)]
    pipe.send(cluster.address)
    while True:
        try:
            order, _, which = pipe.recv().partition(" ")
        except EOFError:
            order = "end"
        if order == "add":
            added.append(cluster.add_node(num_cpus=cpus))
        elif order == "lose":
            lost = added.pop(int(which) % len(added))
            cluster.remove_node(lost, allow_graceful=False)
        elif order == "end":
            cluster.shutdown()
        with contextlib.suppress(OSError):
            pipe.send(len(added))
        if order == "end":
            return
