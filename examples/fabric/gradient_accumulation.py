"""Gradient accumulation: batches that do not fit are taken in pieces, and the processes talk once per step.

python examples/fabric/gradient_accumulation.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric import Fabric

BATCH_SIZE = 128  # of one step, over all pieces and processes


def train(fabric: Fabric, num_pieces: int) -> torch.Tensor:
    """Train, and give back the weights."""
    fabric.seed_everything(1, verbose=False)
    digits = load_digits()
    data = TensorDataset(torch.from_numpy(digits.data).double() / 16, torch.from_numpy(digits.target))
    piece = BATCH_SIZE // num_pieces // fabric.world_size
    loader = fabric.setup_dataloaders(DataLoader(data, batch_size=piece, drop_last=True))
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.3))

    for _ in range(4):
        for number, (images, labels) in enumerate(loader, start=1):
            is_last = number % num_pieces == 0
            # The processes exchange gradients in backward: only for the last piece, which has the sum of all.
            with fabric.no_backward_sync(model, enabled=not is_last):
                loss = F.cross_entropy(model(images), labels)
                fabric.backward(loss / num_pieces)
            if is_last:
                optimizer.step()
                optimizer.zero_grad()
    fabric.print(f"{num_pieces} piece(s) of {piece} in each process: loss {fabric.all_reduce(loss.detach()):.4f}")
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def train_twice(fabric: Fabric) -> None:
    whole, in_pieces = train(fabric, 1), train(fabric, 4)
    fabric.print(f"largest difference of a weight: {(whole - in_pieces).abs().max():.0e}")


def main() -> None:
    fabric = Fabric(accelerator="cpu", devices=2, precision="64-true")
    fabric.launch(train_twice)


if __name__ == "__main__":
    main()
