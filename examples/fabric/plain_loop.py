"""Your own loop on one device: what Fabric changes in a loop of plain PyTorch.

python examples/fabric/plain_loop.py
fulmen-fabric run examples/fabric/plain_loop.py --precision bf16-mixed
"""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric import Fabric
from fulmen.fabric.loggers import CSVLogger


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    return model, torch.optim.AdamW(model.parameters(), lr=3e-3)


def accuracy(model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    with torch.no_grad():
        hits = [model(images).argmax(dim=-1) == labels for images, labels in loader]
    model.train()
    return torch.cat(hits).float().mean().item()


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    fabric = Fabric(loggers=CSVLogger(folder))
    fabric.seed_everything(1, verbose=False)

    digits = load_digits()
    data = TensorDataset(torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target))
    train, test = torch.utils.data.random_split(data, [1437, 360])
    train_loader, test_loader = fabric.setup_dataloaders(
        DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=360)
    )
    model, optimizer = fabric.setup(*build())

    for epoch in range(8):
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            fabric.backward(loss)
            optimizer.step()
        fabric.log_dict({"loss": loss.detach(), "accuracy": accuracy(model, test_loader)}, step=epoch)
    fabric.print(f"accuracy {accuracy(model, test_loader):.3f}")

    fabric.save(folder / "digits.ckpt", {"model": model, "optimizer": optimizer, "epoch": epoch})
    again, again_optimizer = fabric.setup(*build())
    state = {"model": again, "optimizer": again_optimizer, "epoch": 0}
    fabric.load(folder / "digits.ckpt", state)
    fabric.print(f"loaded   {accuracy(again, test_loader):.3f}, after epoch {state['epoch']}")


if __name__ == "__main__":
    main()
