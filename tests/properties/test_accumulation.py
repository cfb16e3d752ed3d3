"""Gradients added up over k batches are those of a batch k times as large; steps are known before they come."""

import math
import tempfile
from typing import Any

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.trainer import Callback, LightningModule, Trainer

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "default_root_dir": tempfile.gettempdir(),
}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adam": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}
slow = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def data(samples: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(samples)
    inputs = torch.randn(samples, 3, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, inputs.sin().sum(1, keepdim=True))


class Net(LightningModule):
    """In float64, so that the order of sums hardly shows."""

    def __init__(self, optimizer: str, reads_estimate: bool = False) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        self.optimizer, self.reads_estimate = optimizer, reads_estimate
        self.estimates: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        if self.reads_estimate:
            self.estimates = [self.trainer.estimated_stepping_batches, self.trainer.estimated_stepping_batches]
        return OPTIMIZERS[self.optimizer](self.parameters())


class ByHand(Net):
    """The same, stepped by the module itself."""

    def __init__(self, optimizer: str, window: int, batches: int) -> None:
        super().__init__(optimizer)
        self.automatic_optimization = False
        self.window, self.batches = window, batches

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()
        first = batch_idx // self.window * self.window
        size = min(self.window, self.batches - first)
        if batch_idx == first:
            optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx) / size)
        if batch_idx == first + size - 1:
            optimizer.step()


def weights(module: Net, loader: DataLoader[Any], **flags: Any) -> tuple[Tensor, Trainer]:
    torch.manual_seed(4)  # for loaders that shuffle
    trainer = Trainer(**QUIET, **{"max_epochs": 2, **flags})
    trainer.fit(module, loader)
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()]), trainer


@slow
@given(st.integers(1, 4), st.integers(1, 7), st.integers(1, 4), st.sampled_from(sorted(OPTIMIZERS)))
@example(2, 5, 2, "sgd")  # the last window has one batch of two
def test_a_window_of_batches_equals_one_large_batch(batch_size: int, batches: int, window: int, optimizer: str) -> None:
    samples = data(batch_size * batches)
    one_by_one = DataLoader(samples, batch_size)
    added, _ = weights(Net(optimizer), one_by_one, accumulate_grad_batches=window)
    large, _ = weights(Net(optimizer), DataLoader(samples, batch_size * window))
    by_hand, _ = weights(ByHand(optimizer, window, batches), one_by_one)
    assert torch.allclose(added, large, rtol=0, atol=1e-12)
    assert torch.allclose(added, by_hand, rtol=0, atol=1e-12)


class Schedule(Callback):
    """Another window in each epoch, as a schedule of accumulation says it."""

    def __init__(self, windows: list[int]) -> None:
        self.windows = windows

    def batches_to_a_step(self, epoch: int) -> int:
        return self.windows[min(epoch, len(self.windows) - 1)]

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        trainer.accumulate_grad_batches = self.batches_to_a_step(trainer.current_epoch)


@slow
@given(
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(-1, 9).filter(bool),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.one_of(st.just(1.0), st.integers(1, 5)),
    st.booleans(),
)
def test_the_steps_of_a_fit_are_known_before_the_first_and_knowing_them_changes_nothing(
    batches: int, epochs: int, max_steps: int, windows: list[int], limit: int | float, scheduled: bool
) -> None:
    flags = {"max_epochs": epochs, "max_steps": max_steps, "limit_train_batches": limit}
    flags |= {"callbacks": [Schedule(windows)]} if scheduled else {"accumulate_grad_batches": windows[0]}
    loader = DataLoader(data(batches), 1, shuffle=True)
    module = Net("sgd", reads_estimate=True)
    reading, trainer = weights(module, loader, **flags)
    assert module.estimates == [trainer.global_step] * 2
    not_reading, _ = weights(Net("sgd"), loader, **flags)
    assert torch.equal(reading, not_reading)


def test_the_steps_of_a_fit_without_end_are_without_number() -> None:
    module = Net("sgd", reads_estimate=True)

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = True

    weights(module, DataLoader(data(3)), max_epochs=-1, callbacks=[Stop()])
    assert module.estimates == [math.inf] * 2
