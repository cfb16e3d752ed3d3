import os
from datetime import timedelta

import pytest
import torch

from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.strategies.ddp import DDPStrategy
from fulmen.fabric.strategies.shared_filesystem import is_shared_filesystem
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy


def test_alone_and_far_away_everything_is_shared(tmp_path):
    assert is_shared_filesystem(SingleDeviceStrategy(), tmp_path)
    assert is_shared_filesystem(SingleDeviceStrategy())
    strategy = DDPStrategy(parallel_devices=[torch.device("cpu")] * 2, cluster_environment=LightningEnvironment())
    strategy.cluster_environment.set_world_size(2)
    assert is_shared_filesystem(strategy, "s3://bucket/run")


def _ask_in_two_processes(strategy, folder):
    strategy.setup_environment()
    rank = strategy.global_rank
    file = folder / "a file"
    assert is_shared_filesystem(strategy, folder, timeout=60)
    assert is_shared_filesystem(strategy, str(file), timeout=60)
    assert is_shared_filesystem(strategy, f"file://{folder}", timeout=60)
    os.chdir(folder)
    assert is_shared_filesystem(strategy, timeout=60)
    os.chdir(folder / f"of-{rank}")
    assert not is_shared_filesystem(strategy, ".", timeout=0)  # as if each had a disk of its own
    with pytest.raises(FileNotFoundError, match=r"does not exist in every process"):
        is_shared_filesystem(strategy, folder / "of-0" if rank == 0 else folder / "nowhere")
    with pytest.raises(ConfigurationError, match="rank 0 cannot write"):
        is_shared_filesystem(strategy, "/proc")  # nobody can
    strategy.barrier()
    return sorted(path.name for path in folder.rglob("*"))


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="a folder in which nobody can write")
def test_processes_find_out_together(tmp_path):
    for name in ("of-0", "of-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "a file").touch()
    strategy = DDPStrategy(
        parallel_devices=[torch.device("cpu")] * 2,
        cluster_environment=LightningEnvironment(),
        start_method="fork",
        timeout=timedelta(seconds=60),
    )
    # Nothing is left behind.
    assert strategy.launcher.launch(_ask_in_two_processes, strategy, tmp_path) == ["a file", "of-0", "of-1"]
