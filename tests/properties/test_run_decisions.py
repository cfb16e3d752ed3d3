"""When a run validates, sends a row and ends: a real Trainer beside a slow oracle that counts on its fingers."""

import tempfile
from typing import Any

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fulmen.trainer import LightningModule, Trainer
from fulmen.trainer.loggers import Logger

# ("batch", epoch, index), ("validate", epoch), ("row", step)
Event = tuple[Any, ...]


class Told(LightningModule):
    """Tells of each batch and each validation; may ask to stop, or leave out the rest of an epoch."""

    def __init__(self, events: list[Event], stop_at: int | None, skip_at: int | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.events, self.stop_at, self.skip_at = events, stop_at, skip_at
        self.begun = 0

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> int | None:
        self.begun += 1
        return -1 if self.begun - 1 == self.skip_at else None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.events.append(("batch", self.current_epoch, batch_idx))
        self.log("seen", 1.0)
        if self.begun - 1 == self.stop_at:
            self.trainer.should_stop = True
        return self.weight * batch.sum()

    def on_validation_start(self) -> None:
        self.events.append(("validate", self.current_epoch))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Rows(Logger):
    """Tells of each row of steps."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events

    @property
    def name(self) -> str:
        return "rows"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if "seen" in metrics:
            self.events.append(("row", step))


def oracle(case: dict[str, Any]) -> list[Event]:
    """What happens, worked out one batch after the other."""
    flags, batches = case["flags"], case["batches"]
    events: list[Event] = []
    epoch = steps = begun = in_all = 0
    stopping = False
    if case["float_interval"] is None:
        every = flags["val_check_interval"]
    else:
        every = max(1, int(batches * case["float_interval"]))

    def enough() -> bool:
        return epoch >= (flags["min_epochs"] or 0) and steps >= (flags["min_steps"] or 0)

    while True:
        if flags["max_steps"] != -1 and steps >= flags["max_steps"]:
            return events
        if flags["max_epochs"] != -1 and epoch >= flags["max_epochs"]:
            return events
        if stopping and enough():
            return events
        window = 0
        for index in range(batches):
            begun += 1
            if begun - 1 == case["skip_at"]:
                in_all += 1
                break
            events.append(("batch", epoch, index))
            stopping = stopping or begun - 1 == case["stop_at"]
            window += 1
            in_all += 1
            is_last = index == batches - 1
            stepped = is_last or window == flags["accumulate_grad_batches"]
            if stepped:
                steps, window = steps + 1, 0
                if flags["log_every_n_steps"] and (stopping or steps % flags["log_every_n_steps"] == 0):
                    events.append(("row", steps - 1))
            ends = stopping and enough()
            across = flags["check_val_every_n_epoch"] is None
            counted = in_all if across else index + 1
            in_this_epoch = across or (epoch + 1) % flags["check_val_every_n_epoch"] == 0
            if in_this_epoch and (ends or counted % every == 0):
                events.append(("validate", epoch))
            if ends or (flags["max_steps"] != -1 and steps >= flags["max_steps"]):
                break
        epoch += 1


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    batches, across = draw(st.integers(1, 6)), draw(st.booleans())
    part = None if across else draw(st.none() | st.sampled_from([0.3, 0.5, 1.0]))
    max_epochs = draw(st.integers(0, 4))
    max_steps = draw(st.just(-1) | st.integers(0, 12))
    return {
        "batches": batches,
        "float_interval": part,
        "stop_at": draw(st.none() | st.integers(0, 12)),
        "skip_at": draw(st.none() | st.integers(0, 12)),
        "flags": {
            "max_epochs": max_epochs,
            "max_steps": max_steps,
            "min_epochs": draw(st.none() | st.integers(0, max_epochs)),
            "min_steps": draw(st.none() | st.integers(0, 8 if max_steps == -1 else max_steps)),
            "val_check_interval": draw(st.integers(1, batches + 4 * across)) if part is None else part,
            "check_val_every_n_epoch": None if across else draw(st.integers(1, 3)),
            "log_every_n_steps": draw(st.integers(0, 4)),
            "accumulate_grad_batches": draw(st.integers(1, 3)),
        },
    }


def case(**flags: Any) -> dict[str, Any]:
    usual = {"max_epochs": 2, "max_steps": -1, "min_epochs": None, "min_steps": None, "val_check_interval": 1,
             "check_val_every_n_epoch": 1, "log_every_n_steps": 1, "accumulate_grad_batches": 1}  # fmt: skip
    beside = {name: flags.pop(name, None) for name in ("float_interval", "stop_at", "skip_at")}
    return {"batches": flags.pop("batches", 3), **beside, "flags": {**usual, **flags}}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
@example(case(stop_at=1, min_epochs=2))
@example(case(skip_at=1, accumulate_grad_batches=2))
@example(case(max_steps=2, accumulate_grad_batches=2, float_interval=1.0, val_check_interval=1.0))
def test_a_run_does_what_the_oracle_says(case: dict[str, Any]) -> None:
    events: list[Event] = []
    trainer = Trainer(
        accelerator="cpu",
        logger=Rows(events),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tempfile.gettempdir(),
        **case["flags"],
    )
    module = Told(events, case["stop_at"], case["skip_at"])
    trainer.fit(module, DataLoader(torch.ones(case["batches"], 1)), DataLoader(torch.ones(1, 1)))
    assert events == oracle(case)
