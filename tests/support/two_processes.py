"""Two processes of one run, as torchrun starts them: forked, so that they share the imported torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # DDP imports it, which takes seconds; forked processes have what is there already
import torch.multiprocessing as mp


def in_two_processes(work: Callable[[int, Path], None], folder: Path) -> None:
    """Run `work(rank, folder)` in both; what they find out, they leave in the folder."""
    # Kept here, so that nobody else can take its port.
    store = torch.distributed.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    mp.start_processes(_start, args=(work, folder, store.port), nprocs=2, start_method="fork")  # type: ignore[no-untyped-call]


def _start(rank: int, work: Callable[[int, Path], None], folder: Path, port: int) -> None:
    os.environ.update(
        TORCHELASTIC_RUN_ID="test",
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    torch.set_num_threads(1)
    work(rank, folder)
