"""A fit gives, bit for bit, the weights of the loop that a user would write."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.trainer import LightningModule, Trainer, seed_everything


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))


def loader(batch_size: int = 4) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(30, 6, generator=generator), torch.randn(30, 1, generator=generator)
    return DataLoader(TensorDataset(inputs, targets), batch_size=batch_size, shuffle=True)


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda net: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
    "adam": lambda net: torch.optim.Adam(net.parameters(), lr=0.01),
    "lbfgs": lambda net: torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=3),
}


class Net(LightningModule):
    def __init__(self, optimizer: str) -> None:
        super().__init__()
        self.net = network()
        self.optimizer = optimizer

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = OPTIMIZERS[self.optimizer](self.net)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def plain(optimizer_name: str, epochs: int, clip: float | None) -> nn.Module:
    net = network()
    optimizer = OPTIMIZERS[optimizer_name](net)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for _ in range(epochs):
        for inputs, targets in loader():

            def closure() -> Tensor:
                loss = nn.functional.mse_loss(net(inputs), targets)  # noqa: B023  called at once
                optimizer.zero_grad()
                loss.backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(net.parameters(), clip)
                return loss

            optimizer.step(closure)
        scheduler.step()
    return net


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_fit_gives_the_weights_of_a_plain_loop(optimizer: str, clip: float | None, tmp_path: Path) -> None:
    seed_everything(3, verbose=False)
    expected = plain(optimizer, epochs=3, clip=clip).state_dict()
    seed_everything(3, verbose=False)
    module = Net(optimizer)
    trainer = Trainer(
        max_epochs=3, gradient_clip_val=clip, default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False
    )
    trainer.fit(module, loader())
    assert all(torch.equal(module.net.state_dict()[name], expected[name]) for name in expected)


def test_accumulating_gradients_equals_larger_batches(tmp_path: Path) -> None:
    class Linear(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 1, dtype=torch.float64)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return nn.functional.mse_loss(self.layer(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(batch_size: int, accumulate: int) -> Tensor:
        seed_everything(5, verbose=False)
        module = Linear()
        data = TensorDataset(torch.randn(40, 6, dtype=torch.float64), torch.randn(40, 1, dtype=torch.float64))
        trainer = Trainer(
            max_epochs=2,
            accumulate_grad_batches=accumulate,
            accelerator="cpu",
            barebones=True,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, DataLoader(data, batch_size=batch_size))
        return module.layer.weight.detach()

    # 10 batches of 4 in windows of 4: the last window has two.
    assert torch.allclose(fit(16, 1), fit(4, 4), rtol=0, atol=1e-12)
