"""A run without a trainer: calls a board as the loops do, with real hook rules."""

from pathlib import Path

import pytest
import torch
import yaml

from fulmen.trainer.hooks.table import HOOKS
from fulmen.trainer.metrics.board import MetricsBoard
from fulmen.trainer.stages import Stage


class RecordingLogger:
    """Keeps what it gets, as text."""

    def __init__(self):
        self.rows = []

    def log_metrics(self, metrics, step=None):
        assert all(type(value) in (float, int) for value in metrics.values()), metrics
        text = ", ".join(
            f"{name}={float(value)}"
            for name, value in sorted(metrics.items(), key=lambda item: (item[0] == "epoch", item[0]))
        )
        self.rows.append(f"step={step}: {text}")

    def save(self):
        pass


class Run:
    """Calls `board` in the order of the loops; `user` maps names of hooks and steps to what the user does there."""

    def __init__(self, user, *, logger=True, log_every=1, reducer=None, module=None):
        self.logger = RecordingLogger()
        self.board = MetricsBoard([self.logger] if logger else [])
        self.board.attach(reducer, torch.device("cpu"), module=module)
        self.user = user
        self.log_every = log_every
        self.global_step = 0
        self.epoch = 0
        self.val_steps = 0

    def fire(self, hook, *args):
        if hook not in self.user:
            return
        board = self.board
        outer = board.hook, board.rule
        board.hook, board.rule = hook, HOOKS[hook].log
        self.user[hook](board, *args)
        board.hook, board.rule = outer

    def fit(self, *, epochs=1, batches=2, val_batches=0, batch=None):
        board = self.board
        board.reset()
        for hook in ("prepare_data", "setup", "configure_model", "configure_optimizers", "on_fit_start"):
            self.fire(hook)
        batch = torch.zeros(1) if batch is None else batch
        with board.inside(Stage.TRAIN):
            self.fire("on_train_start")
            for self.epoch in range(epochs):
                board.begin_epoch()
                self.fire("on_train_epoch_start")
                for index in range(batches):
                    board.begin_batch(batch, index)
                    for hook in (
                        "on_train_batch_start",
                        "optimizer_step",
                        "training_step",
                        "on_before_zero_grad",
                        "on_before_backward",
                        "on_after_backward",
                        "on_before_optimizer_step",
                        "configure_gradient_clipping",
                        "lr_scheduler_step",
                        "on_train_batch_end",
                    ):
                        self.fire(hook, self.epoch, index)
                    if (self.global_step + 1) % self.log_every == 0:
                        board.publish_step(self.global_step, self.epoch)
                    self.global_step += 1
                if val_batches:
                    self.val_steps = self.evaluate(
                        Stage.VALIDATE, [val_batches], step=self.global_step - 1, counted=self.val_steps
                    )
                board.end_batches()
                self.fire("on_train_epoch_end", self.epoch)
                board.publish_epoch(self.global_step - 1, self.epoch)
            self.fire("on_train_end", epochs)
        self.fire("on_fit_end")
        self.fire("teardown")
        return self

    def evaluate(self, stage, lengths, *, step=0, counted=0):
        """`lengths`: batches of each loader. Returns how many batches were counted on the loggers' axis."""
        board, name = self.board, "test" if stage is Stage.TEST else "validation"
        with torch.inference_mode(), board.inside(stage, len(lengths)):
            self.fire(f"on_{name}_start")
            board.begin_epoch()
            self.fire(f"on_{name}_epoch_start")
            for loader, length in enumerate(lengths):
                counted = counted if len(lengths) == 1 else 0
                for index in range(length):
                    board.begin_batch(torch.zeros(1), index, loader)
                    for hook in (f"on_{name}_batch_start", f"{name}_step", f"on_{name}_batch_end"):
                        self.fire(hook, self.epoch, index, loader)
                    board.publish_step(counted)
                    counted += 1
            board.end_batches()
            self.fire(f"on_{name}_epoch_end", self.epoch)
            board.publish_epoch(step, self.epoch)
            self.fire(f"on_{name}_end", self.epoch)
            self.returned = board.results()
        return counted

    def predict(self):
        self.board.reset()
        with self.board.inside(Stage.PREDICT):
            self.board.begin_epoch()
            self.board.begin_batch(torch.zeros(1), 0)
            for hook in ("on_predict_start", "on_predict_epoch_start", "on_predict_batch_start", "predict_step"):
                self.fire(hook)
            for hook in ("on_predict_batch_end", "on_predict_epoch_end", "on_predict_end"):
                self.fire(hook)

    def seen(self):
        """All three views, as numbers."""
        board = self.board
        views = {
            "callback_metrics": board.callback_metrics,
            "logged_metrics": board.logged_metrics,
            "progress_bar_metrics": board.progress_bar_metrics,
        }
        return {view: {name: float(value) for name, value in values.items()} for view, values in views.items()}


FACTS = yaml.safe_load(Path(__file__).with_name("facts.yaml").read_text())


@pytest.fixture
def run_type():
    return Run


@pytest.fixture
def facts():
    return FACTS


def pytest_generate_tests(metafunc):
    """`combination`, `module_hook`, ...: one test per fact."""
    tables = {
        "combination": FACTS["combinations"]["table"],
        "module_hook": FACTS["log_inside_each_module_hook"]["hooks"],
        "callback_hook": FACTS["log_inside_each_callback_hook"],
    }
    for name, table in tables.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, list(table.items()), ids=list(table))
