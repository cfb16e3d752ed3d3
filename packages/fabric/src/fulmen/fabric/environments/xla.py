"""XLA: processes that torch_xla started, one per TPU core. Needs the package torch_xla."""

from __future__ import annotations

import os
import re
from typing import Any, Final

from fulmen.fabric.environments.base import ClusterEnvironment, check_host, read_int
from fulmen.fabric.errors import ArgumentTypeError
from fulmen.fabric.optional_packages import is_installed, require

_PORT_OF_XLA: Final = 8476


class XLAEnvironment(ClusterEnvironment):
    """The processes of an XLA program. Their places are asked of torch_xla, which starts its runtime.

    Args:
        args, kwargs: None; they are there for strategies that pass on what they got.

    Raises:
        MissingPackageError: If torch_xla is not installed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if args or kwargs:
            raise ArgumentTypeError(
                f"XLAEnvironment() got {', '.join([*map(repr, args), *kwargs])}. It has no options: torch_xla knows"
                " the place of each process. Leave the arguments out."
            )
        require("torch_xla", purpose="XLAEnvironment()")

    @property
    def creates_processes_externally(self) -> bool:
        """False: they are started by the launcher of the XLA strategies."""
        return False

    @property
    def main_address(self) -> str:
        """`TPU_MESH_CONTROLLER_ADDRESS` or `MASTER_ADDR`; else what torch_xla finds out about the TPU."""
        for variable in ("TPU_MESH_CONTROLLER_ADDRESS", "MASTER_ADDR"):
            if variable in os.environ:
                # The controller's address may come with its port.
                return check_host(re.sub(r"(?<=[^:]):[0-9]+$", "", os.environ[variable]), variable)
        return check_host(str(_runtime().get_master_ip()), "torch_xla")

    @property
    def main_port(self) -> int:
        """`TPU_MESH_CONTROLLER_PORT` or `MASTER_PORT`; else the one at which torch_xla meets by itself."""
        return read_int("TPU_MESH_CONTROLLER_PORT", read_int("MASTER_PORT", _PORT_OF_XLA))

    @staticmethod
    def detect() -> bool:
        """Has torch_xla a device on this machine?"""
        if not is_installed("torch_xla"):
            return False
        require("torch_xla", purpose="XLAEnvironment.detect()")  # it looks for TPUs, and says so by PJRT_DEVICE
        return bool(os.environ.get("PJRT_DEVICE"))

    def world_size(self) -> int:
        """Number of processes over all hosts."""
        return int(_runtime().world_size())

    def set_world_size(self, size: int) -> None:
        """Nothing: torch_xla knows."""

    def global_rank(self) -> int:
        """Rank over all hosts."""
        return int(_runtime().global_ordinal())

    def set_global_rank(self, rank: int) -> None:
        """Nothing: torch_xla knows."""

    def local_rank(self) -> int:
        """Rank on this host."""
        return int(_runtime().local_ordinal())

    def node_rank(self) -> int:
        """Number of this host."""
        return int(_runtime().host_index())


def _runtime() -> Any:
    return require("torch_xla.runtime", purpose="XLAEnvironment()")
