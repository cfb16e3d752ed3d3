"""A model that knows nothing of several processes, on a mesh of four: tensors over two, parameters and data over two.

python examples/fabric/mesh.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric import Fabric
from fulmen.fabric.strategies import ModelParallelStrategy

# Names of layers, and how each is split: columns make a part of the features, and rows add the parts up.
PLAN = {
    "blocks.*.[qkv]": "column",
    "blocks.*.out": "row",
    "blocks.*.up": "column",
    "blocks.*.down": "row",
    "blocks.*": "shard",  # gathered over the data axis one block after the other
}


class Block(nn.Module):
    def __init__(self, width: int = 32, head_width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head_width = head_width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        # As many heads as there are features here: all of them in one process, half of them in two.
        q, k, v = (f(h).unflatten(-1, (-1, self.head_width)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Rows(nn.Module):
    """Reads an image as a sequence of its eight rows."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.start = nn.Linear(8, width)
        self.position = nn.Parameter(0.1 * torch.randn(8, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.end = nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.start(images) + self.position
        for block in self.blocks:
            x = block(x)
        return self.end(x.mean(1))


def train(fabric: Fabric) -> None:
    fabric.seed_everything(1, verbose=False)
    digits = load_digits()
    data = TensorDataset(torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target))
    loader = fabric.setup_dataloaders(DataLoader(data, batch_size=32, shuffle=True))
    model = fabric.setup_module(Rows())
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=3e-3))

    weight = model.blocks[0].up.weight
    print(f"process {fabric.global_rank} holds {list(weight.to_local().shape)} of {list(weight.shape)}")
    for epoch in range(4):
        hits = torch.zeros(())
        for images, labels in loader:
            optimizer.zero_grad()
            logits = model(images)
            fabric.backward(F.cross_entropy(logits, labels))
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            hits += (logits.argmax(-1) == labels).float().mean()
        fabric.print(f"epoch {epoch}: accuracy {fabric.all_reduce(hits / len(loader)).item():.3f}")


def main() -> None:
    strategy = ModelParallelStrategy(plan=PLAN, data_parallel_size=2, tensor_parallel_size=2)
    fabric = Fabric(accelerator="cpu", devices=4, strategy=strategy)
    fabric.launch(train)


if __name__ == "__main__":
    main()
