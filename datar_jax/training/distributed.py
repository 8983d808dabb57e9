"""Starts one of many processes, from a cluster's environment or from explicit options.

Before anything touches a device, each process says who it is; from then on `jax.devices()` are those of all.
"""

from __future__ import annotations

import glob
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from datar_jax.config import ConfigError
from datar_jax.training.peers import Peers

HEARTBEAT_SECONDS = 100  # after so long without a sign of one process, the others end
SHUTDOWN_SECONDS = 30  # the last to finish is waited for so long


@dataclass(frozen=True)
class Cluster:
    """Options about the other processes; without any, the environment decides."""

    coordinator: str | None = None  # HOST:PORT of process 0
    processes: int | None = None
    process: int | None = None

    def __post_init__(self) -> None:
        given = (self.coordinator, self.processes, self.process)
        if given == (None, None, None):
            return
        if self.coordinator is None or self.processes is None or self.process is None:
            raise ConfigError("--coordinator, --processes and --process belong together; give all three, or none")
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"--coordinator={self.coordinator}: give HOST:PORT of process 0, such as node0:8476")
        if self.processes < 1:
            raise ConfigError(f"--processes={self.processes}: give 1 or more")
        if not 0 <= self.process < self.processes:
            raise ConfigError(f"--process={self.process}: give 0 to {self.processes - 1}, one number to each process")


def surroundings(environment: Mapping[str, str] = os.environ) -> str:
    """Name of the launcher that started this process as one of several, or an empty text.

    jax could detect this itself, but would query the network, which a single machine should not wait for.
    """

    def several(*names: str) -> bool:
        return any(environment.get(name, "").isdigit() and int(environment[name]) > 1 for name in names)

    if "JAX_COORDINATOR_ADDRESS" in environment:
        return "JAX_COORDINATOR_ADDRESS"
    if "SLURM_PROCID" in environment and several("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        return "SLURM"
    if several("OMPI_COMM_WORLD_SIZE"):
        return "Open MPI"
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return "Kubernetes"
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES", ""))
    chips = importlib.util.find_spec("libtpu") and (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
    if "," in hosts or "MEGASCALE_COORDINATOR_ADDRESS" in environment or chips:
        return "a TPU pod"
    return ""


def wait_for_all(what: str) -> None:
    """Waits for all processes; returns at once if there is only one."""
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(what)


def start(cluster: Cluster, program: str, report: Callable[[str], object]) -> Peers | None:
    """Initializes jax.distributed if there are other processes, and watches them.

    Args:
      cluster: options about them.
      program: stands before messages on standard error.
      report: shows a line where the processes cannot be watched, but can train.

    Raises:
      ConfigError: they were not found.
    """
    where = "flags" if cluster.coordinator else surroundings()
    if not where:
        return None
    import jax
    from jax._src.distributed import global_state as joined  # no public name has the client and the address

    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.processes,
            cluster.process,
            cluster_detection_method="deactivate" if cluster.coordinator else None,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"started by {where}, but the other processes were not found ({reason}); "
            "give --coordinator=HOST:PORT --processes=N --process=I to each"
        ) from None
    host = str(joined.coordinator_address).rpartition(":")[0].strip("[]")
    try:
        return Peers(joined.client, host, joined.process_id, joined.num_processes, program)
    except (OSError, RuntimeError) as error:
        report(f"no connection to process 0 ({error}): jax alone notices a lost process")
        return None
