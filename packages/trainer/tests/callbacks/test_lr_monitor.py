import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.callbacks.lr_monitor import LearningRateMonitor
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.loggers.csv import CSVLogger
from fulmen.trainer.trainer import Trainer


class Net(LightningModule):
    """`make` builds the optimizers from two parameters."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.make = make

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = self.layer(batch[0]).sum()
        if self.automatic_optimization:
            return loss
        optimizers = self.optimizers()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        return None

    def configure_optimizers(self) -> Any:
        made = self.make(*self.layer.parameters())
        self.automatic_optimization = not (isinstance(made, tuple) and len(made[0]) > 1)
        return made


def sgd(weight, bias):
    optimizer = torch.optim.SGD([weight, bias], lr=0.1, momentum=0.9, weight_decay=0.01)
    return [optimizer], [StepLR(optimizer, 1)]


def groups(weight, bias):
    optimizer = torch.optim.Adam([{"params": [weight]}, {"params": [bias], "lr": 0.5}], lr=0.1)
    return [optimizer], [StepLR(optimizer, 1)]


def named_groups(weight, bias):
    optimizer = torch.optim.Adam(
        [{"params": [weight], "name": "w"}, {"params": [bias], "lr": 0.5, "name": "b"}], lr=0.1
    )
    return [optimizer], [StepLR(optimizer, 1)]


def named_scheduler(weight, bias):
    optimizer = torch.optim.Adam([weight, bias], lr=0.1)
    return [optimizer], [{"scheduler": StepLR(optimizer, 1), "name": "my"}]


def no_scheduler(weight, bias):
    return torch.optim.Adam([weight, bias], lr=0.1)


def two_of_a_kind(weight, bias):
    optimizers = [torch.optim.Adam([weight], lr=0.1), torch.optim.Adam([bias], lr=0.2)]
    return optimizers, [StepLR(optimizer, 1) for optimizer in optimizers]


def by_step(weight, bias):
    optimizer = torch.optim.SGD([weight, bias], lr=0.1)
    return [optimizer], [{"scheduler": StepLR(optimizer, 1), "interval": "step"}]


def fit(folder: Path, monitor: LearningRateMonitor, make: Any, **flags: Any) -> tuple[list[str], Trainer]:
    """The rows in the file, in the words of the reference's measurements, after epochs of two batches."""
    logger = CSVLogger(folder)
    off = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    defaults: dict[str, Any] = {"accelerator": "cpu", "logger": logger, "max_epochs": 1, "log_every_n_steps": 1}
    given = {"callbacks": [monitor], **defaults, **flags}
    trainer = Trainer(default_root_dir=folder, **off, **given)
    trainer.fit(Net(make), DataLoader(TensorDataset(torch.ones(2, 4)), batch_size=1))
    path = Path(logger.log_dir) / "metrics.csv"
    if not path.exists():
        return [], trainer
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    shown = []
    for row in rows:
        values = {name: round(float(value), 6) for name, value in row.items() if value and name != "step"}
        text = ", ".join(f"{name}={value}" for name, value in sorted(values.items()))
        shown.append(f"step={row['step']}: {text}")
    return shown, trainer


ALL = {"log_momentum": True, "log_weight_decay": True}
# As the reference was measured: what configures the optimizers, arguments, rows.
MEASURED = {
    "one": (sgd, {}, ["step=0: lr-SGD=0.1"]),
    "one, all": (sgd, ALL, ["step=0: lr-SGD=0.1, lr-SGD-momentum=0.9, lr-SGD-weight_decay=0.01"]),
    "groups": (groups, {}, ["step=0: lr-Adam/pg1=0.1, lr-Adam/pg2=0.5"]),
    "groups, all": (
        *(groups, ALL),
        [
            "step=0: lr-Adam/pg1=0.1, lr-Adam/pg1-momentum=0.9, lr-Adam/pg1-weight_decay=0.0,"
            " lr-Adam/pg2=0.5, lr-Adam/pg2-momentum=0.9, lr-Adam/pg2-weight_decay=0.0"
        ],
    ),
    "named groups": (named_groups, {}, ["step=0: lr-Adam/b=0.5, lr-Adam/w=0.1"]),
    "scheduler name": (named_scheduler, {}, ["step=0: my=0.1"]),
    "scheduler name, all": (named_scheduler, ALL, ["step=0: my=0.1, my-momentum=0.9, my-weight_decay=0.0"]),
    "no scheduler": (no_scheduler, {}, ["step=0: lr-Adam=0.1", "step=0: lr-Adam=0.1", "step=1: lr-Adam=0.1"]),
    "two of a kind": (two_of_a_kind, {}, ["step=0: lr-Adam=0.1, lr-Adam-1=0.2"]),
    "two of a kind, all": (
        *(two_of_a_kind, ALL),
        [
            "step=0: lr-Adam=0.1, lr-Adam-1=0.2, lr-Adam-1-momentum=0.9, lr-Adam-1-weight_decay=0.0,"
            " lr-Adam-momentum=0.9, lr-Adam-weight_decay=0.0"
        ],
    ),
}


@pytest.mark.parametrize("case", MEASURED)
def test_names_and_rows_are_those_of_the_reference(case, tmp_path):
    make, arguments, rows = MEASURED[case]
    monitor = LearningRateMonitor(**arguments)
    shown, trainer = fit(tmp_path, monitor, make)
    assert shown == rows
    names = {part.split("=")[0] for row in rows for part in row.partition(": ")[2].split(", ")}
    assert set(trainer.callback_metrics) == names
    assert all(isinstance(value, Tensor) for value in trainer.callback_metrics.values())
    assert set(monitor.lrs) == {name for name in names if not name.endswith(("-momentum", "-weight_decay"))}


@pytest.mark.parametrize(
    ("interval", "rows"),
    [
        ("step", [f"step={step}: lr-SGD={rate}" for step, rate in enumerate((0.1, 0.1, 0.01, 0.01))]),
        ("epoch", ["step=0: lr-SGD=0.1", "step=2: lr-SGD=0.01"]),
        (None, ["step=0: lr-SGD=0.1", "step=2: lr-SGD=0.01"]),
    ],
)
def test_the_interval_says_how_often(interval, rows, tmp_path):
    monitor = LearningRateMonitor(interval)
    assert fit(tmp_path, monitor, sgd, max_epochs=2)[0] == rows
    assert [round(rate, 6) for rate in monitor.lrs["lr-SGD"]] == [float(row.rpartition("=")[2]) for row in rows]


def test_without_interval_a_scheduler_of_steps_is_followed_by_steps(tmp_path):
    rows, _ = fit(tmp_path, LearningRateMonitor(), by_step, max_epochs=1)
    assert rows == ["step=0: lr-SGD=0.1", "step=1: lr-SGD=0.01"]


@settings(max_examples=6, deadline=None)
@given(every=st.integers(0, 4), window=st.integers(1, 2))
def test_steps_are_logged_where_the_trainer_logs_steps(every, window, tmp_path_factory):
    rows, _ = fit(
        tmp_path_factory.mktemp("logs"),
        LearningRateMonitor("step"),
        sgd,
        max_epochs=4,
        log_every_n_steps=every,
        accumulate_grad_batches=window,
    )
    steps = [int(row.removeprefix("step=").split(":")[0]) for row in rows]
    logged = [step for step in range(8 // window) if every and (step + 1) % every == 0]
    # Each batch of a window belongs to the step at its end.
    assert steps == [step for step in logged for _ in range(window)]


def test_the_last_values_are_kept(tmp_path):
    monitor = LearningRateMonitor(log_momentum=True, log_weight_decay=True)
    fit(tmp_path, monitor, sgd)
    assert monitor.last_momentum_values == {"lr-SGD-momentum": 0.9}
    assert monitor.last_weight_decay_values == {"lr-SGD-weight_decay": 0.01}
    assert monitor.state_dict() == {}


def test_an_optimizer_without_momentum_is_named_in_a_warning(tmp_path):
    def adagrad(weight, bias):
        return torch.optim.Adagrad([weight, bias], lr=0.1)

    with pytest.warns(RuntimeWarning, match="Adagrad"):
        rows, _ = fit(tmp_path, LearningRateMonitor("epoch", log_momentum=True), adagrad)
    assert rows == ["step=0: lr-Adagrad=0.1, lr-Adagrad-momentum=0.0"]


def test_an_unknown_interval_is_refused_and_quoted():
    with pytest.raises(MisconfigurationException, match="logging_interval='foo'"):
        LearningRateMonitor("foo")  # type: ignore[arg-type]


def test_without_a_logger_there_is_nothing_to_do(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"Trainer\(logger=True\)"):
        fit(tmp_path, LearningRateMonitor(), sgd, logger=False)


def test_two_groups_of_one_name_are_refused(tmp_path):
    def same(weight, bias):
        return torch.optim.SGD([{"params": [weight], "name": "a"}, {"params": [bias], "name": "a"}], lr=0.1)

    with pytest.raises(MisconfigurationException, match=r"SGD.*\['a'\]"):
        fit(tmp_path, LearningRateMonitor(), same)


def test_a_group_that_is_added_while_training_is_logged_from_then_on(tmp_path):
    class Adds(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.optimizers[0].add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.25})

    monitor = LearningRateMonitor(log_momentum=True)
    rows, _ = fit(tmp_path, monitor, sgd, callbacks=[Adds(), monitor], max_epochs=2)
    assert monitor.lrs["lr-SGD/pg2"][0] == 0.25
    assert set(monitor.lrs) == {"lr-SGD", "lr-SGD/pg1", "lr-SGD/pg2"}
    assert len(monitor.lrs["lr-SGD"]) == 1
    assert monitor.last_momentum_values["lr-SGD/pg2-momentum"] == 0.9
    assert [("lr-SGD/pg2" in row) for row in rows] == [False, True]
