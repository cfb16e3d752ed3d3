"""Tensor parallel: two processes work on the same batch, each with half of every layer.

python examples/fabric/tensor_parallel.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric import Fabric
from fulmen.fabric.strategies import ModelParallelStrategy


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 256)
        self.down = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.relu(self.up(x)))


def parallelize(model: FeedForward, mesh: DeviceMesh) -> FeedForward:
    # The first layer makes half of the 256 features in each process; the second adds up what the halves contribute.
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    return parallelize_module(model, mesh["tensor_parallel"], plan)


def train(fabric: Fabric) -> None:
    fabric.seed_everything(1, verbose=False)
    digits = load_digits()
    data = TensorDataset(torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target))
    # The strategy knows that both processes need the same samples.
    loader = fabric.setup_dataloaders(DataLoader(data, batch_size=64, shuffle=True))
    model = fabric.setup_module(FeedForward())
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=3e-3))

    here = model.up.weight.to_local()
    print(f"process {fabric.global_rank} holds {list(here.shape)} of {list(model.up.weight.shape)}")
    for epoch in range(3):
        hits = 0
        for images, labels in loader:
            optimizer.zero_grad()
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
            fabric.backward(loss)
            optimizer.step()
            hits += (logits.argmax(dim=-1) == labels).sum().item()
        fabric.print(f"epoch {epoch}: loss {loss.item():.4f}, accuracy {hits / len(data):.3f}")


def main() -> None:
    strategy = ModelParallelStrategy(parallelize, data_parallel_size=1, tensor_parallel_size=2)
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch(train)


if __name__ == "__main__":
    main()
