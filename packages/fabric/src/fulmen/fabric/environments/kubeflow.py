"""Kubeflow: one process per pod of a PyTorchJob."""

from __future__ import annotations

import os
from typing import Final

from fulmen.fabric.environments.base import ClusterEnvironment, check_host, read_int
from fulmen.fabric.errors import ConfigurationError

_NEEDED: Final = ("KUBERNETES_PORT", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
# Who sets these starts processes of its own inside the pod, and knows them better.
_OTHERS: Final = ("TORCHELASTIC_RUN_ID", "GROUP_RANK", "LOCAL_RANK", "NODE_RANK")


class KubeflowEnvironment(ClusterEnvironment):
    """The pods of a PyTorchJob, each with one process on one device.

    Read are `MASTER_ADDR`, `MASTER_PORT`, `WORLD_SIZE` and `RANK`, which the training operator sets. For several
    devices per pod let it start the program by torchrun.
    """

    @property
    def creates_processes_externally(self) -> bool:
        """True: Kubernetes starts the pods."""
        return True

    @property
    def main_address(self) -> str:
        """`MASTER_ADDR`."""
        return check_host(os.environ.get("MASTER_ADDR", ""), "MASTER_ADDR")

    @property
    def main_port(self) -> int:
        """`MASTER_PORT`."""
        return read_int("MASTER_PORT", tool="the training operator")

    @staticmethod
    def detect() -> bool:
        """Is this process a pod of a PyTorchJob of several, without torchrun?"""
        if any(name in os.environ for name in _OTHERS) or not all(name in os.environ for name in _NEEDED):
            return False
        # A job of one pod starts its processes as any other machine does.
        return os.environ["WORLD_SIZE"].strip() not in ("0", "1")

    def world_size(self) -> int:
        """`WORLD_SIZE`: the number of pods."""
        return read_int("WORLD_SIZE", tool="the training operator")

    def set_world_size(self, size: int) -> None:
        """Nothing: the training operator knows."""

    def global_rank(self) -> int:
        """`RANK`: the number of this pod."""
        return read_int("RANK", tool="the training operator")

    def set_global_rank(self, rank: int) -> None:
        """Nothing: the training operator knows."""

    def local_rank(self) -> int:
        """0: each pod is a node with one process."""
        return 0

    def node_rank(self) -> int:
        """The number of this pod."""
        return self.global_rank()

    def local_world_size(self) -> int | None:
        """1."""
        return 1

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Refuse more than one device per pod, and another number of nodes than of pods.

        Raises:
            ConfigurationError: If so.
        """
        if (num_devices, num_nodes) == (1, self.world_size()):
            return
        raise ConfigurationError(
            f"devices={num_devices} and num_nodes={num_nodes} do not fit this PyTorchJob:"
            f" it runs one process in each of {self.world_size()} pods (WORLD_SIZE)."
            f" Pass devices=1 and num_nodes={self.world_size()}; for several devices per pod start the program by"
            " torchrun."
        )
