"""Fully sharded data parallel: no process ever holds the whole model, not even while it is built, saved or loaded.

python examples/fabric/fsdp.py
"""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric import Fabric
from fulmen.fabric.strategies import FSDPStrategy


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def build(fabric: Fabric) -> nn.Module:
    with fabric.init_module(empty_init=True):  # without memory: each process fills in its part, when it is set up
        model = nn.Sequential(nn.Linear(64, 32), Block(32), Block(32), nn.Linear(32, 10))
    return fabric.setup_module(model)


def train(fabric: Fabric) -> None:
    fabric.seed_everything(1, verbose=False)
    digits = load_digits()
    data = TensorDataset(torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target))
    loader = fabric.setup_dataloaders(DataLoader(data, batch_size=64, shuffle=True, drop_last=True))

    model = build(fabric)
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=3e-3))
    held, total = (sum(count(p) for p in model.parameters()) for count in (number_here, torch.Tensor.numel))
    fabric.print(f"parameters {total}, of which the first process holds {held}")

    for epoch in range(3):
        loader.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
        fabric.print(f"epoch {epoch}: loss {fabric.all_reduce(loss.detach()):.4f}")

    # A folder, to which every process writes what it holds. Any number of processes can load it.
    path = Path(fabric.broadcast(tempfile.mkdtemp())) / "digits.ckpt"
    fabric.save(path, {"model": model, "optimizer": optimizer})
    again = build(fabric)
    fabric.load(path, {"model": again})
    with torch.no_grad():
        fabric.print(f"loaded:  loss {fabric.all_reduce(F.cross_entropy(again(images), labels)):.4f}")
    fabric.print(f"one file of it: fulmen-fabric consolidate {path}")


def number_here(parameter: torch.Tensor) -> int:
    return parameter.to_local().numel()  # a DTensor: this process's part of the whole


def main() -> None:
    # Each block is gathered when it runs, and let go afterwards.
    strategy = FSDPStrategy(auto_wrap_policy={Block})
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch(train)


if __name__ == "__main__":
    main()
