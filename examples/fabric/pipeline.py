"""A model in two stages, each in a process of its own; both work on parts of a batch at the same time.

python examples/fabric/pipeline.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric import Fabric
from fulmen.fabric.strategies import ModelParallelStrategy, Pipeline


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Digits(nn.Module):
    """Knows nothing of stages."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.start = nn.Linear(64, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(4))
        self.end = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.start(images / 16)
        for block in self.blocks:
            x = block(x)
        return self.end(x)


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def hits(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return (model(batch[0]).argmax(-1) == batch[1]).float()


def train(fabric: Fabric) -> None:
    fabric.seed_everything(1, verbose=False)
    digits = load_digits()
    data = TensorDataset(torch.from_numpy(digits.data).float(), torch.from_numpy(digits.target))
    # Both processes see the same batches.
    loader = fabric.setup_dataloaders(DataLoader(data, batch_size=128, shuffle=True))
    model = fabric.setup_module(Digits())
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=3e-3))

    here = sum(parameter.numel() for parameter in model.parameters() if not parameter.is_meta)
    print(f"process {fabric.global_rank} holds {here} of {sum(p.numel() for p in model.parameters())} parameters")
    for epoch in range(4):
        for batch in loader:
            optimizer.zero_grad()
            fabric.strategy.forward_backward(loss, model, batch)
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
        right = torch.cat([fabric.strategy.evaluate(hits, model, batch) for batch in loader])
        fabric.print(f"epoch {epoch}: accuracy {right.mean().item():.3f}")


def main() -> None:
    # The second stage begins with the third block. Each batch is cut into four.
    strategy = ModelParallelStrategy(pipeline=Pipeline(["blocks.2"], micro_batches=4))
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch(train)


if __name__ == "__main__":
    main()
