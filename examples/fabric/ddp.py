"""Data parallel: a replica of the model in each process, and the same result for any number of them.

python examples/fabric/ddp.py --devices 2
torchrun --nproc-per-node 2 examples/fabric/ddp.py
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric import Fabric

BATCH_SIZE = 128  # of all processes together: each takes its share, so that the steps are the same for any number
NUM_TRAIN, NUM_TEST = 11 * BATCH_SIZE, 388


def load_data() -> tuple[TensorDataset, TensorDataset]:
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16  # (1797, 1, 8, 8)
    labels = torch.from_numpy(digits.target)
    # Shuffled once, before the processes share it out: loaders would shuffle differently for one and for two.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:NUM_TRAIN], order[NUM_TRAIN : NUM_TRAIN + NUM_TEST]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def build_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def train(fabric: Fabric, num_epochs: int) -> None:
    fabric.seed_everything(1, verbose=False)
    train_data, test_data = load_data()
    share = BATCH_SIZE // fabric.world_size
    train_loader, test_loader = fabric.setup_dataloaders(
        DataLoader(train_data, batch_size=share), DataLoader(test_data, batch_size=share)
    )
    model = build_model()
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=5e-3))

    for epoch in range(num_epochs):
        model.train()
        for images, labels in train_loader:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
        fabric.print(f"epoch {epoch}: training loss {fabric.all_reduce(loss.detach()):.4f}")

    model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=fabric.device)  # sum of losses, hits
    with torch.no_grad():
        for images, labels in test_loader:
            logits = model(images).double()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            hits = (logits.argmax(dim=-1) == labels).sum()
            totals += torch.stack([loss, hits])
    loss_sum, num_hits = fabric.all_reduce(totals, reduce_op="sum").tolist()
    fabric.print(f"test loss {loss_sum / NUM_TEST:.4f}, test accuracy {num_hits / NUM_TEST:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", default="cpu", help="the digits are so few that a GPU does not help")
    parser.add_argument("--devices", default="auto")
    parser.add_argument("--strategy", default="auto", help="auto, ddp, ddp_spawn, ...")
    parser.add_argument("--precision", default="64-true", help="in 32 bit, sums depend on the number of processes")
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    fabric = Fabric(
        accelerator=args.accelerator, devices=args.devices, strategy=args.strategy, precision=args.precision
    )
    fabric.launch(train, args.epochs)


if __name__ == "__main__":
    main()
