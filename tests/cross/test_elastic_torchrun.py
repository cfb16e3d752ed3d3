"""torchrun starts killed workers again, on fewer machines and on more: each sample counts once in what survives.

The worst of it at once: the machine that is lost has rank 0 and its store, and dies in the middle of an accumulation
window, with checkpoints being written in the background and workers of a DataLoader at work.
Two real torchrun agents on loopback stand for two machines. The workers kill and wait by themselves, at steps, so that
nothing depends on how fast anything is.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

SIZE, EPOCHS, WINDOW, RATE = 48, 2, 3, 1e-3
PROGRAM = """
import json, os, signal, sys, time
import torch
from torch.utils.data import DataLoader, TensorDataset
from fulmen.trainer import Callback, LightningModule, Trainer, seed_everything
from fulmen.trainer.callbacks import ModelCheckpoint
from fulmen.trainer.plugins import AsyncCheckpointIO

FOLDER, SIZE, EPOCHS, WINDOW, RATE = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])


def once(name):
    # True for the first process that asks.
    try:
        open(f"{FOLDER}/{name}", "x").close()
    except FileExistsError:
        return False
    return True


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(self.layer.weight)
        self.ledger = []

    def training_step(self, batch, batch_idx):
        world, num_done = self.trainer.world_size, len(self.ledger)
        has = lambda name: os.path.exists(f"{FOLDER}/{name}")
        # What is left for two machines must be even: what fills up a last round would count twice.
        may_wait = num_done >= 23 and sum(len(numbers) for _, numbers in self.ledger) % 2 == 0
        if world == 1 and (not has("machine-lost") or (may_wait and not has("machine-came"))):
            # One machine alone must wait here for the other, which torchrun tells by SIGTERM.
            once("alone") if has("machine-lost") else None
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            while True:
                time.sleep(60)
        if world == 2 and self.global_rank == 1 and num_done >= 5 and once("worker-lost"):
            os.kill(os.getpid(), signal.SIGKILL)
        numbers, = batch
        # One world may be followed by a smaller one: all ranks know what all have seen.
        self.ledger.append([self.current_epoch, self.all_gather(numbers).flatten().tolist()])
        return self.layer(numbers).mean()

    def on_save_checkpoint(self, checkpoint):
        checkpoint["ledger"] = list(self.ledger)

    def on_load_checkpoint(self, checkpoint):
        self.ledger = checkpoint["ledger"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE)


class AfterEachBatch(Callback):
    # Also inside of an accumulation window; and there, while something is being written, a machine is lost.
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        trainer.save_checkpoint(f"{FOLDER}/checkpoints/{trainer.current_epoch}-{batch_idx}.ckpt")
        is_inside = (batch_idx + 1) % WINDOW != 0
        if trainer.world_size == 2 and trainer.is_global_zero and len(module.ledger) >= 10 and is_inside:
            if once("machine-lost"):
                os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)


def main():
    torch.set_num_threads(1)
    seed_everything(1, verbose=False)
    data = DataLoader(TensorDataset(torch.arange(float(SIZE)).unsqueeze(1)), batch_size=1, shuffle=True, num_workers=1)
    net = Net()
    trainer = Trainer(
        accelerator="cpu", devices="auto", num_nodes=int(os.environ["GROUP_WORLD_SIZE"]), strategy="ddp",
        max_epochs=EPOCHS, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ModelCheckpoint(every_n_train_steps=2, dirpath=f"{FOLDER}/checkpoints"), AfterEachBatch()],
        accumulate_grad_batches=WINDOW, plugins=AsyncCheckpointIO(), default_root_dir=FOLDER,
    )
    with open(f"{FOLDER}/starts.txt", "a") as file:
        file.write(f"{os.environ['MACHINE']} {trainer.world_size}\\n")
    trainer.fit(net, data, ckpt_path="auto")
    if trainer.is_global_zero:
        with open(f"{FOLDER}/ledger.json", "w") as file:
            found = {"ledger": net.ledger, "step": trainer.global_step, "world": trainer.world_size}
            json.dump({**found, "weight": net.layer.weight.item()}, file)


if __name__ == "__main__":
    main()
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills processes by the signals of Linux")


def start_agent(folder: Path, machine: str, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=9"]
    command += ["--rdzv-backend=c10d", "--rdzv-id=elastic", f"--rdzv-endpoint=127.0.0.1:{port}"]
    command += ["--rdzv-conf=is_host=0,last_call_timeout=1,keep_alive_interval=2", "--local-addr=127.0.0.1"]
    command += ["--monitor-interval=0.1", str(folder / "program.py"), str(folder)]
    command += map(str, (SIZE, EPOCHS, WINDOW, RATE))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MACHINE": machine}
    # As examples/cluster/torchrun.sh, which says why.
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with open(folder / f"{machine}.txt", "wb") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def wait_for(path: Path, agents: list[subprocess.Popen[bytes]]) -> None:
    while not path.exists() and any(agent.poll() is None for agent in agents):
        time.sleep(0.2)
    assert path.exists(), told(path.parent)


def told(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in folder.glob("*.txt"))


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the run has left: its ledger, and who was started."""
    folder = tmp_path_factory.mktemp("elastic")
    (folder / "program.py").write_text(PROGRAM)
    # Kept here, as by a machine that does not die, and so that nobody else can take its port.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    agents = [start_agent(folder, machine, store.port) for machine in ("first", "second")]
    try:
        wait_for(folder / "alone", agents)
        (folder / "machine-came").touch()
        agents.append(start_agent(folder, "third", store.port))
        codes = [agent.wait() for agent in agents]
    finally:
        for agent in agents:
            try:
                os.killpg(agent.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    # Either of the first two machines had rank 0.
    assert sorted(codes) == [-signal.SIGKILL, 0, 0], told(folder)
    assert codes[2] == 0
    return json.loads((folder / "ledger.json").read_text()), (folder / "starts.txt").read_text()


@pytest.mark.timeout(600)
def test_the_run_goes_on_with_other_machines(left: Any) -> None:
    _, starts = left
    worlds = [(machine, int(world)) for machine, world in map(str.split, starts.splitlines())]
    assert {("first", 2), ("second", 2)} <= set(worlds)
    assert 1 in {world for _, world in worlds}
    assert worlds[-1][1] == 2
    assert ("third", 2) in worlds


@pytest.mark.timeout(600)
def test_each_sample_counts_once_in_each_epoch(left: Any) -> None:
    found, _ = left
    num_steps, weight = 0, 0.0
    for epoch in range(EPOCHS):
        rows = [numbers for at, numbers in found["ledger"] if at == epoch]
        assert Counter(number for numbers in rows for number in numbers) == Counter(map(float, range(SIZE)))
        for start in range(0, len(rows), WINDOW):
            means = [sum(numbers) / len(numbers) for numbers in rows[start : start + WINDOW]]
            weight -= RATE * sum(means) / len(means)
            num_steps += 1
    assert found["step"] == num_steps
    # So it does in the weights: gradients of a window that one world began and another one ended are whole.
    assert found["weight"] == pytest.approx(weight, abs=1e-6)
    assert found["world"] == 2
