"""A small GPT that learns letters from the help texts that come with Python, and writes some of its own.

python examples/fabric/gpt.py
fulmen-fabric run examples/fabric/gpt.py --devices 2 --strategy fsdp --precision bf16-mixed -- --steps 2000
"""

import argparse
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fulmen.fabric import Fabric


class Letters(Dataset):
    """Pieces of a text: B batches, T letters, each to be foretold from those before it."""

    def __init__(self, text: str, length: int) -> None:
        self.alphabet = sorted(set(text))
        code = {letter: number for number, letter in enumerate(self.alphabet)}
        self.text, self.length = torch.tensor([code[letter] for letter in text]), length

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.length

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        piece = self.text[place * self.length : (place + 1) * self.length + 1]
        return piece[:-1], piece[1:]


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attend, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.think = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BTC: Tensor) -> Tensor:
        B, T, C = x_BTC.shape
        heads = self.attend(self.norms[0](x_BTC)).view(B, T, 3, self.num_heads, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)
        x_BTC = x_BTC + self.project(mixed)
        return x_BTC + self.think(self.norms[1](x_BTC))


class GPT(nn.Module):
    def __init__(self, num_letters: int, length: int, width: int = 64, num_blocks: int = 2) -> None:
        super().__init__()
        self.length = length
        self.letters, self.places = nn.Embedding(num_letters, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, num_heads=4) for _ in range(num_blocks)), nn.LayerNorm(width))
        self.head = nn.Linear(width, num_letters)

    def forward(self, text_BT: Tensor) -> Tensor:
        places = torch.arange(text_BT.shape[1], device=text_BT.device)
        return self.head(self.blocks(self.letters(text_BT) + self.places(places)))

    @torch.no_grad()
    def write(self, text_BT: Tensor, num_letters: int) -> Tensor:
        for _ in range(num_letters):
            chances = self(text_BT[:, -self.length :])[:, -1].float().softmax(dim=-1)
            text_BT = torch.cat([text_BT, torch.multinomial(chances, 1)], dim=1)
        return text_BT


def train(fabric: Fabric, num_steps: int) -> None:
    fabric.seed_everything(1, verbose=False)
    data = Letters("\n".join(topics.values()), length=64)
    loader = fabric.setup_dataloaders(DataLoader(data, batch_size=16, shuffle=True, drop_last=True))
    model = fabric.setup_module(GPT(len(data.alphabet), data.length))
    model.mark_forward_method("write")  # it calls the model: in the same precision, through the same strategy
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=3e-3))
    losses = []
    for step, (text_BT, next_BT) in zip(range(1, num_steps + 1), loader, strict=False):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(text_BT).flatten(0, 1), next_BT.flatten())
        fabric.backward(loss)
        optimizer.step()
        losses.append(loss.detach())
        if step % (num_steps // 4) == 0:
            fabric.print(f"step {step}: loss {fabric.all_reduce(torch.stack(losses).mean()):.3f}")
            losses.clear()
    written = model.write(text_BT[:1, :1], num_letters=100)
    fabric.print("".join(data.alphabet[number] for number in written[0].tolist()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    fabric = Fabric()
    fabric.launch(train, parser.parse_args().steps)
