"""One process per device of this machine, each of which torch_xla gives its device."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.launchers.spawn import SpawnLauncher
from fulmen.fabric.optional_packages import require
from fulmen.fabric.rank_zero import rank_zero_only


class XLALauncher(SpawnLauncher):
    """Runs the function in `num_processes` forked processes, all that this machine has devices for.

    On a pod, the program is started on each of its machines; torch_xla knows which of them this is.

    Args:
        num_processes: On this machine.
    """

    def __init__(self, num_processes: int) -> None:
        super().__init__(LightningEnvironment(), num_processes, start_method="fork")

    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run `function(*args, **kwargs)` in every process; what it returned on this machine's first, on the CPU.

        Raises:
            ConfigurationError: If the processes cannot be started: under torchrun, or once torch_xla's runtime runs.
            ProcessFailedError: If a process was killed.
            Exception: The error of the process that failed first.
        """
        check_can_start()
        return super().launch(partial(_on_own_device, self._num_processes, function), *args, **kwargs)


def check_can_start() -> None:
    """Raises ConfigurationError where no process of this program could be given a device."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigurationError(
            "An XLA strategy runs under torchrun, which has started processes already. On a machine with XLA devices"
            " the strategy starts them itself. Start the program once per machine, with `python`."
        )
    xla: Any = require("torch_xla", purpose="XLALauncher")
    if xla._XLAC._xla_runtime_is_initialized():
        raise ConfigurationError(
            "Processes were to be started after an XLA device had been used in this one. The devices belong to this"
            " process then, and others cannot get them."
            " Touch no XLA device before `fabric.launch()`, or before the Trainer runs."
        )


def _on_own_device(num_processes: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    pjrt: Any = require("torch_xla._internal.pjrt", purpose="XLALauncher")
    runtime: Any = require("torch_xla.runtime", purpose="XLALauncher")
    pjrt.initialize_multiprocess(int(os.environ["LOCAL_RANK"]), num_processes)
    # Over all machines of a pod, of which our launcher has seen one.
    rank_zero_only.rank = runtime.global_ordinal()
    os.environ.update(RANK=str(runtime.global_ordinal()), WORLD_SIZE=str(runtime.world_size()))
    return function(*args, **kwargs)
