"""torchrun starts killed workers again, on fewer machines and on more: each sample counts once in what survives.

Two real torchrun agents on loopback stand for two machines. The workers kill and wait by themselves, at steps, so that
nothing depends on how fast anything is.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

SIZE, EPOCHS = 48, 2
PROGRAM = """
import json, os, signal, sys, time
import torch
from torch.utils.data import DataLoader, TensorDataset
from fulmen.trainer import LightningModule, Trainer, seed_everything
from fulmen.trainer.callbacks import ModelCheckpoint

FOLDER, SIZE, EPOCHS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


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
        self.ledger = []

    def training_step(self, batch, batch_idx):
        self.accident()
        numbers, = batch
        # One world may be followed by a smaller one: all ranks know what all have seen.
        self.ledger.append([self.current_epoch, self.all_gather(numbers).flatten().tolist()])
        return self.layer(numbers).mean()

    def accident(self):
        world, rank, step = self.trainer.world_size, self.global_rank, self.global_step
        has = lambda name: os.path.exists(f"{FOLDER}/{name}")
        if world == 1 and (not has("machine-lost") or (step >= 18 and not has("machine-came"))):
            # One machine alone must wait here for the other, which torchrun tells by SIGTERM.
            once("alone") if has("machine-lost") else None
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            while True:
                time.sleep(60)
        if world == 2 and rank == 1 and step >= 5 and once("worker-lost"):
            os.kill(os.getpid(), signal.SIGKILL)
        if world == 2 and os.environ["MACHINE"] == "second" and step >= 11 and once("machine-lost"):
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["ledger"] = self.ledger

    def on_load_checkpoint(self, checkpoint):
        self.ledger = checkpoint["ledger"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def main():
    torch.set_num_threads(1)
    seed_everything(1, verbose=False)
    data = DataLoader(TensorDataset(torch.arange(float(SIZE)).unsqueeze(1)), batch_size=1, shuffle=True)
    net = Net()
    trainer = Trainer(
        accelerator="cpu", devices="auto", num_nodes=int(os.environ["GROUP_WORLD_SIZE"]), strategy="ddp",
        max_epochs=EPOCHS, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=ModelCheckpoint(every_n_train_steps=2), default_root_dir=FOLDER,
    )
    with open(f"{FOLDER}/starts.txt", "a") as file:
        file.write(f"{os.environ['MACHINE']} {trainer.world_size}\\n")
    trainer.fit(net, data, ckpt_path="auto")
    if trainer.is_global_zero:
        with open(f"{FOLDER}/ledger.json", "w") as file:
            json.dump({"ledger": net.ledger, "step": trainer.global_step, "world": trainer.world_size}, file)


if __name__ == "__main__":
    main()
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kills processes by the signals of Linux")


def start_agent(folder: Path, machine: str, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=9"]
    command += ["--rdzv-backend=c10d", "--rdzv-id=elastic", f"--rdzv-endpoint=127.0.0.1:{port}"]
    command += ["--rdzv-conf=is_host=0,last_call_timeout=1,keep_alive_interval=2", "--local-addr=127.0.0.1"]
    command += ["--monitor-interval=0.1", str(folder / "program.py"), str(folder), str(SIZE), str(EPOCHS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MACHINE": machine}
    # As examples/cluster/torchrun.sh, which says why.
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with open(folder / f"{machine}.txt", "wb") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def wait_for(path: Path, agents: list[subprocess.Popen[bytes]]) -> None:
    while not path.exists():
        try:
            agents[0].wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
        break
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
    assert codes == [0, -signal.SIGKILL, 0], told(folder)
    return json.loads((folder / "ledger.json").read_text()), (folder / "starts.txt").read_text()


@pytest.mark.timeout(600)
def test_the_run_goes_on_with_other_machines(left: Any) -> None:
    _, starts = left
    worlds = [(machine, int(world)) for machine, world in map(str.split, starts.splitlines())]
    assert ("second", 2) in worlds
    assert ("first", 1) in worlds
    assert worlds[-1][1] == 2
    assert ("third", 2) in worlds


@pytest.mark.timeout(600)
def test_each_sample_counts_once_in_each_epoch(left: Any) -> None:
    found, _ = left
    for epoch in range(EPOCHS):
        seen = Counter(number for at, numbers in found["ledger"] if at == epoch for number in numbers)
        assert seen == Counter(map(float, range(SIZE)))
    assert found["step"] == len(found["ledger"])
    assert found["world"] == 2
