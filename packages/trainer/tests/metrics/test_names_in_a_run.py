"""The facts about names, held by the real Trainer: not only does the board do it right, the loops ask it rightly."""

import ast

import pytest
import torch
import torchmetrics
from torch.utils.data import DataLoader

from fulmen.trainer.core.callback import Callback
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import MisconfigurationException
from fulmen.trainer.hooks.table import HOOKS

VIEWS = ("callback_metrics", "logged_metrics", "progress_bar_metrics")
STEPS = {"train_step": "training_step", "val_step": "validation_step", "test_step": "test_step"}


def loader(batches=2):
    return DataLoader(torch.ones(batches, 32))


def rows_of(logger):
    return [
        f"step={step}: " + ", ".join(f"{name}={row[name]}" for name in sorted(row, key=lambda n: (n == "epoch", n)))
        for step, row in logger.rows
    ]


class Logs(BoringModel):
    """Calls `log(module, index)` in one of its steps."""

    def __init__(self, where, log):
        super().__init__()
        self.where, self.log_it = where, log

    def training_step(self, batch, batch_idx):
        if self.where == "training_step":
            self.log_it(self, batch_idx)
        return self.step(batch)

    def validation_step(self, batch, batch_idx):
        if self.where == "validation_step":
            self.log_it(self, batch_idx)

    def test_step(self, batch, batch_idx):
        if self.where == "test_step":
            self.log_it(self, batch_idx)


def run(quick, rows, step, log):
    """What was seen, and what came back."""
    trainer = quick(logger=rows, log_every_n_steps=1)
    module = Logs(STEPS.get(step, "validation_step"), log)
    if step == "validate_step":
        returned = trainer.validate(module, loader(), verbose=False)
    elif step == "test_step":
        returned = trainer.test(module, loader(), verbose=False)
    else:
        returned = trainer.fit(module, loader(), loader())
    seen = {view: {name: float(value) for name, value in getattr(trainer, view).items()} for view in VIEWS}
    return seen, returned


@pytest.mark.filterwarnings("ignore")
def test_each_combination_of_arguments(combination, quick, rows):
    text, fact = combination
    step, call = text.split(" log(")
    pairs = [item.split("=") for item in call.rstrip(")").split(", ")]
    kwargs = {name: ast.literal_eval(value) for name, value in pairs}

    def log(module, index):
        module.log("a", torch.tensor(index + 1.0), **kwargs)

    if "raises" in fact:
        with pytest.raises(MisconfigurationException):
            run(quick, rows, step, log)
        return
    seen, returned = run(quick, rows, step, log)
    assert seen == {view: fact[view] for view in VIEWS}
    assert rows_of(rows) == fact["sent_to_logger"]
    if "returned" in fact:
        assert returned == ast.literal_eval(fact["returned"])


@pytest.mark.filterwarnings("ignore")
def test_each_hook_of_a_callback(callback_hook, quick):
    hook, fact = callback_hook
    for text, names in fact.items():
        kwargs = {} if text == "default" else {text.split("=")[0]: True}

        class Logging(Callback):
            def on_named(self, trainer, pl_module, *_, kwargs=kwargs, **__):
                pl_module.log("a", 1.0, **kwargs)

        callback = Logging()
        setattr(Logging, hook, Logging.on_named)
        trainer = quick(callbacks=[callback])
        entry = next((name for name in ("test", "predict") if f"on_{name}" in hook), "fit")
        loaders = (loader(), loader()) if entry == "fit" else (loader(),)
        if str(names).startswith("raises"):
            with pytest.raises(MisconfigurationException):
                getattr(trainer, entry)(BoringModel(), *loaders)
        else:
            getattr(trainer, entry)(BoringModel(), *loaders)
            assert " ".join(sorted(trainer.callback_metrics)) == names
        assert hook in HOOKS


@pytest.mark.filterwarnings("ignore")
def test_the_axis_is_that_of_optimizer_steps(facts, quick, rows):
    module = Logs("training_step", lambda module, index: module.log("a", 1.0))
    quick(logger=rows, log_every_n_steps=1, accumulate_grad_batches=2, limit_val_batches=0).fit(module, loader(4))
    assert rows_of(rows) == facts["step_axis_with_accumulate_grad_batches_2"]


@pytest.mark.filterwarnings("ignore")
def test_the_axis_counts_batches_where_several_optimizers_step(facts, quick, rows):
    class Two(BoringModel):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.step()
            self.log("a", 1.0)

        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]

    trainer = quick(logger=rows, log_every_n_steps=1, limit_val_batches=0)
    trainer.fit(Two(), loader())
    fact = facts["step_axis_with_two_manual_optimizers"]
    assert rows_of(rows) == fact["rows"]
    assert trainer.global_step == fact["global_step"]


@pytest.mark.filterwarnings("ignore")
def test_torchmetrics_objects_are_logged_over_epochs(quick, rows):
    class WithMetrics(BoringModel):
        def __init__(self):
            super().__init__()
            self.train_mean = torchmetrics.MeanMetric()
            self.val = torchmetrics.MetricCollection(
                {"mean": torchmetrics.MeanMetric(), "sum": torchmetrics.SumMetric()}
            )

        def training_step(self, batch, batch_idx):
            self.train_mean(float(batch_idx))
            self.log("train", self.train_mean, on_step=True, on_epoch=True)
            return self.step(batch)

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.val.update(torch.tensor(float(batch_idx + 10 * self.current_epoch)))
            self.log_dict(self.val)

    trainer = quick(logger=rows, log_every_n_steps=1, max_epochs=2)
    trainer.fit(WithMetrics(), loader(3), loader(2))
    assert [row["train_step"] for _, row in rows.rows if "train_step" in row] == [0.0, 1.0, 2.0] * 2
    assert [row["train_epoch"] for _, row in rows.rows if "train_epoch" in row] == [1.0, 1.0]
    assert [(row["mean"], row["sum"]) for _, row in rows.rows if "sum" in row] == [(0.5, 1.0), (10.5, 21.0)]


def test_means_of_an_epoch_weigh_every_batch_by_its_size(quick):
    class Logging(BoringModel):
        def validation_step(self, batch, batch_idx):
            self.log("measured", batch.mean())
            self.log("said", batch.mean(), batch_size=1)

    values = torch.tensor([0.0, 0.0, 0.0, 0.0, 5.0])[:, None].expand(5, 32)
    [result] = quick().validate(Logging(), DataLoader(values, batch_size=2), verbose=False)
    assert result == pytest.approx({"measured": 1.0, "said": 5 / 3})
