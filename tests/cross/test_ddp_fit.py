"""Two processes train as one does with batches twice as large, and what they found out comes home."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # DDP imports it, which takes seconds; forked processes have what is there already
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.trainer import LightningModule, Trainer
from fulmen.trainer.callbacks import EarlyStopping, ModelCheckpoint

REPOSITORY = Path(__file__).parents[2]
SAMPLES = 24


def data(samples: int = SAMPLES) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, 5, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, inputs.sum(1, keepdim=True).sin())


class Net(LightningModule):
    """In float64, so that the order of sums hardly shows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    def _loss(self, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch), sync_dist=True)
        self.log("val_most", batch[1].max(), reduce_fx="max", sync_dist=True)
        self.log("val_rows", float(len(batch[0])), reduce_fx="sum", sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def trainer(folder: Path, devices: int, strategy: str, **flags: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        max_epochs=3,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **flags,
    )


def fitted(folder: Path, devices: int, strategy: str) -> dict[str, Any]:
    """What is known after a fit, as the caller sees it."""
    module = Net()
    checkpoint = ModelCheckpoint(monitor="val_loss", save_top_k=1)
    stopping = EarlyStopping("val_loss", patience=5)
    # An epoch ends with a window that is shorter: two batches of the three in a window.
    run = trainer(
        folder, devices, strategy, callbacks=[checkpoint, stopping], accumulate_grad_batches=3, gradient_clip_val=0.5
    )
    size = 6 // devices
    # In order: with shuffling, two processes draw other batches than one.
    run.fit(module, DataLoader(data(), batch_size=size), DataLoader(data(20), batch_size=size))
    return {
        "weights": [parameter.detach().flatten().tolist() for parameter in module.parameters()],
        "metrics": {name: float(value) for name, value in run.callback_metrics.items()},
        "counts": [run.current_epoch, run.global_step],
        "status": [run.state.status, run.state.fn, run.should_stop],
        "best": [Path(checkpoint.best_model_path).name, float(checkpoint.best_model_score or 0)],
        "best_exists": Path(checkpoint.best_model_path).is_file(),
        "log_dir": Path(run.log_dir or "").name,
        "patience": stopping.wait_count,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = fitted(Path(sys.argv[1]), 2, "ddp")
    if os.environ["LOCAL_RANK"] == "0":
        Path(sys.argv[1], "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return fitted(tmp_path_factory.mktemp("alone"), 1, "auto")


def in_script(folder: Path) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__, str(folder)], check=True, timeout=170, env=environment, cwd=REPOSITORY)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


HOW = {
    "ddp": in_script,
    "ddp_fork": lambda folder: fitted(folder, 2, "ddp_fork"),
    "ddp_spawn": lambda folder: fitted(folder, 2, "ddp_spawn"),
}


@pytest.mark.parametrize("how", HOW)
def test_two_processes_equal_one_with_batches_twice_as_large(how: str, alone: dict[str, Any], tmp_path: Path) -> None:
    found = HOW[how](tmp_path)
    for ours, expected in zip(found.pop("weights"), alone["weights"], strict=True):
        assert torch.allclose(torch.tensor(ours), torch.tensor(expected), rtol=0, atol=1e-10)
    assert found.pop("metrics") == pytest.approx(alone["metrics"], abs=1e-6)
    name, score = found.pop("best")
    assert name == alone["best"][0]
    assert score == pytest.approx(alone["best"][1], abs=1e-6)
    assert found == {key: value for key, value in alone.items() if key in found}
    assert alone["counts"] == [3, 6]


def test_predictions_of_every_process_are_kept_by_it_and_those_of_the_first_come_home(tmp_path: Path) -> None:
    module = Net()
    run = trainer(tmp_path, 2, "ddp_fork", logger=False)
    loader = DataLoader(data(), batch_size=4)
    [results] = run.validate(module, loader, verbose=False)
    expected = [trainer(tmp_path, 1, "auto", logger=False).validate(module, loader, verbose=False)][0][0]
    assert results == pytest.approx(expected, abs=1e-6)
    predictions = run.predict(module, loader)
    assert predictions is not None
    inputs = data().tensors[0][0::2]  # of two processes, the first has every other sample
    assert torch.allclose(torch.cat(list(predictions)), module.net(inputs))
