"""Two processes evaluate as one does, prepare data once, talk only at logging points, and say who logged what."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fulmen.trainer import Callback, LightningModule, Trainer, seed_everything
from tests.support.two_processes import in_two_processes

COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "broadcast",
    "broadcast_object_list",
    "barrier",
    "gather",
    "reduce",
    "scatter",
)


class Numbers(Dataset[Tensor]):
    """0, 1, 2, ... in float64: sums of them are exact."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([float(index)], dtype=torch.float64)


class Exact(LightningModule):
    """Logs what adds up exactly, in every way."""

    def __init__(self, log_every: int = 2) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1).double()
        self.mean = torchmetrics.MeanMetric()
        self.seen: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch).mean()
        for name in ("a", "b", "c"):
            self.log(name, batch.mean(), on_step=True, on_epoch=True, prog_bar=True, sync_dist=name != "b")
        return loss

    def _evaluate(self, batch: Tensor) -> None:
        self.seen += batch.flatten().tolist()
        self.mean.update(batch)
        self.log("mean", batch.mean(), sync_dist=True)
        self.log("most", batch.max(), reduce_fx="max", sync_dist=True)
        self.log("least", batch.min(), reduce_fx="min", sync_dist=True)
        self.log("rows", float(len(batch)), reduce_fx="sum", sync_dist=True)
        self.log("metric", self.mean)

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self.log("late", 1.0, reduce_fx="max", sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Disagrees(Exact):
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.global_rank == 1:
            self.log("only_here", 1.0, sync_dist=True)
        return super().training_step(batch, batch_idx)


class Prepares(Exact):
    """Writes down who prepared its data."""

    def __init__(self, folder: Path, per_node: bool) -> None:
        super().__init__()
        self.folder, self.prepare_data_per_node = folder, per_node

    def prepare_data(self) -> None:
        with open(self.folder / f"prepared-{self.prepare_data_per_node}", "a") as file:
            file.write(f"{os.environ.get('RANK', '0')}\n")


class Predicts(Exact):
    """Talks to the others when all is predicted."""

    gathered = 0

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return batch

    def on_predict_epoch_end(self) -> None:
        self.gathered = len(self.all_gather(torch.zeros(1)))


class CountsCollectives(Callback):
    """How many collectives Python code starts in each step; those of DDP's gradients start in C++."""

    def __init__(self) -> None:
        self.now, self.by_step = 0, []

    @contextmanager
    def counting(self) -> Iterator[None]:
        originals = {name: getattr(dist, name) for name in COLLECTIVES}

        def counted(original: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                self.now += 1
                return original(*args, **kwargs)

            return call

        for name, original in originals.items():
            setattr(dist, name, counted(original))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(dist, name, original)

    def on_train_batch_start(self, *_: Any) -> None:
        self.by_step.append(self.now)  # what came since the batch before began belongs to that batch
        self.now = 0

    def on_train_epoch_end(self, *_: Any) -> None:
        self.by_step.append(self.now)
        self.now = 0


def trainer(folder: Path, devices: int, **flags: Any) -> Trainer:
    seed_everything(1, verbose=False)
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    strategy = "ddp" if devices > 1 else "auto"
    return Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        default_root_dir=folder,
        **{"logger": False, "num_sanity_val_steps": 0, "max_epochs": 1, **quiet, **flags},
    )


LENGTHS = {
    "even": [12],
    "uneven": [11],
    "fewer than processes": [1],
    "several loaders": [5, 1, 8],
    "fewer in some": [1, 3, 1],
}


def evaluate(folder: Path, devices: int) -> dict[str, Any]:
    """By entry point and lengths: what came back, what callbacks see, and which samples this process saw."""
    found: dict[str, Any] = {}
    for entry in ("validate", "test"):
        for name, lengths in LENGTHS.items():
            module = Exact()
            run = trainer(folder, devices)
            loaders = [DataLoader(Numbers(length), batch_size=2) for length in lengths]
            results = getattr(run, entry)(module, loaders, verbose=False)
            found[f"{entry} {name}"] = {
                "results": results,
                "metrics": {key: float(value) for key, value in run.callback_metrics.items()},
                "seen": module.seen,
            }
    return found


def one_process(rank: int, folder: Path) -> None:
    report: dict[str, Any] = {"evaluation": evaluate(folder, 2)}
    loader = DataLoader(Numbers(32), batch_size=2)
    counts = CountsCollectives()
    with counts.counting():
        trainer(folder, 2, callbacks=[counts], log_every_n_steps=4, limit_val_batches=0).fit(Exact(), loader)
    report["collectives"] = counts.by_step
    for per_node in (True, False):
        trainer(folder, 2, fast_dev_run=True).fit(Prepares(folder, per_node), loader, loader)
    # By the clock: the one of the first process decides, so both validate after the same batches.
    timed = Exact()
    run = trainer(folder, 2, val_check_interval={"microseconds": 1}, check_val_every_n_epoch=None)
    run.fit(timed, loader, DataLoader(Numbers(2)))
    report["validations"] = len(timed.seen)
    # The second process has nothing to predict on, and goes along with the hooks of the first.
    predicts = Predicts()
    report["predictions"] = len(trainer(folder, 2).predict(predicts, DataLoader(Numbers(1))) or [])
    report["gathered"] = predicts.gathered
    try:
        trainer(folder, 2, log_every_n_steps=3, limit_val_batches=0).fit(Disagrees(), loader)
    except Exception as error:
        report["disagreement"] = f"{type(error).__name__}: {error}"
    (folder / f"{rank}.json").write_text(json.dumps(report))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have left what they found out."""
    folder: Path = tmp_path_factory.mktemp("two_processes")
    in_two_processes(one_process, folder)
    return folder


@pytest.fixture(scope="module")
def reports(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("what", [f"{entry} {name}" for entry in ("validate", "test") for name in LENGTHS])
def test_evaluation_gives_exactly_the_numbers_of_one_process(
    what: str, reports: list[dict[str, Any]], tmp_path: Path
) -> None:
    [alone] = [found for key, found in evaluate(tmp_path, 1).items() if key == what]
    found = [report["evaluation"][what] for report in reports]
    for of_process in found:
        assert of_process["results"] == alone["results"]
        assert of_process["metrics"] == alone["metrics"]
    assert sorted(found[0]["seen"] + found[1]["seen"]) == sorted(alone["seen"])  # each sample once


def test_between_two_logging_points_there_is_no_collective_but_the_gradients(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        [_, *by_step] = report["collectives"]
        # Sixteen batches dealt out as eight; a row after every fourth. The last also ends the epoch.
        assert by_step[:3] == by_step[4:7] == [0, 0, 0]
        assert by_step[3] == 1


def test_data_is_prepared_once(folder: Path, reports: list[dict[str, Any]]) -> None:
    assert (folder / "prepared-True").read_text() == (folder / "prepared-False").read_text() == "0\n"


def test_validation_by_the_clock_is_common(reports: list[dict[str, Any]]) -> None:
    assert reports[0]["validations"] == reports[1]["validations"] > 0


def test_a_process_without_a_batch_to_predict_goes_along(reports: list[dict[str, Any]]) -> None:
    assert [report["predictions"] for report in reports] == [1, 0]
    assert [report["gathered"] for report in reports] == [2, 2]


def test_who_logs_what_others_do_not_is_named_on_every_process(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert report["disagreement"].startswith("MisconfigurationException: self.log(..., sync_dist=True)")
        assert "'only_here' (mean, in training_step) on rank 1 and not on rank 0" in report["disagreement"]
