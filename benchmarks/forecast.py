"""How long is the forecast of a GPT with seven billion parameters on 1,024 processes, and what memory does it take?

    python benchmarks/forecast.py

Prints the forecast, and the seconds and memory of the process that made it. The targets are 30 s and 2 GiB.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fulmen.fabric.forecast import make_forecast
from fulmen.fabric.forecast.figures import size_text
from fulmen.fabric.strategies.base import Strategy
from fulmen.fabric.strategies.fsdp import FSDPStrategy
from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy
from fulmen.fabric.strategies.pipeline.cuts import Pipeline

VOCABULARY, LENGTH = 50304, 2048


class Block(nn.Module):
    """Attention and two layers behind it."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.size = width // num_heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BTC: Tensor) -> Tensor:
        y_BTC = self.norms[0](x_BTC)
        heads = [one(y_BTC).unflatten(-1, (-1, self.size)).transpose(1, 2) for one in (self.q, self.k, self.v)]
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x_BTC = x_BTC + self.out(mixed.transpose(1, 2).flatten(2))
        found: Tensor = x_BTC + self.down(F.gelu(self.up(self.norms[1](x_BTC))))
        return found


class GPT(nn.Module):
    """Letters to chances of the next one."""

    def __init__(self, width: int, num_blocks: int, num_heads: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList([Block(width, num_heads) for _ in range(num_blocks)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, text_BT: Tensor) -> Tensor:
        x_BTC = self.tokens(text_BT) + self.places(torch.arange(text_BT.shape[1], device=text_BT.device))
        for block in self.blocks:
            x_BTC = block(x_BTC)
        chances: Tensor = self.head(self.norm(x_BTC))
        return chances


def loss(module: Any, text_BT: Tensor) -> Tensor:
    """Of each letter, foretold from those before."""
    return F.cross_entropy(module(text_BT[:, :-1]).flatten(0, 1).float(), text_BT[:, 1:].flatten())


def main() -> None:
    """Make the forecast, and measure it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--strategy",
        choices=("fsdp", "hybrid", "model-parallel", "pipeline"),
        default="fsdp",
        help="default: %(default)s",
    )
    parser.add_argument("--num-nodes", type=int, default=128, metavar="N", help="of 8 processes each (%(default)s)")
    parser.add_argument("--num-blocks", type=int, default=32, metavar="N", help="of the GPT (%(default)s)")
    given = parser.parse_args()
    for name in ("num-nodes", "num-blocks"):
        number = getattr(given, name.replace("-", "_"))
        if number < 1:
            parser.error(f"--{name} {number} leaves nothing to forecast. It is a number of {name[4:]}. Pass 1 or more.")
    began, began_cpu = time.perf_counter(), time.process_time()
    plan = {"blocks.*.[qkv]": "column", "blocks.*.out": "row", "blocks.*.up": "column", "blocks.*.down": "row"}
    strategy: Strategy
    if given.strategy == "pipeline":
        points = [f"blocks.{given.num_blocks * place // 8}" for place in range(1, 8)]
        pipeline = Pipeline(points, micro_batches=4, schedule="Interleaved1F1B")
        strategy = ModelParallelStrategy(plan=plan | {"blocks.*": "shard"}, tensor_parallel_size=8, pipeline=pipeline)
    elif given.strategy == "model-parallel":
        strategy = ModelParallelStrategy(plan=plan | {"blocks.*": "shard"}, tensor_parallel_size=8)
    else:
        sharding: Literal["HYBRID_SHARD", "FULL_SHARD"] = "HYBRID_SHARD" if given.strategy == "hybrid" else "FULL_SHARD"
        strategy = FSDPStrategy(auto_wrap_policy={Block}, sharding_strategy=sharding)
    with torch.device("meta"):
        module = GPT(width=4096, num_blocks=given.num_blocks, num_heads=32)
        text_BT = torch.zeros(4, LENGTH + 1, dtype=torch.long)
    forecast = make_forecast(
        module, strategy=strategy, devices=8, num_nodes=given.num_nodes, precision="bf16-mixed", batch=text_BT,
        step=loss, num_samples=10_000_000,
    )  # fmt: skip
    print(forecast)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(f"\n{time.perf_counter() - began:.1f} s, of which {time.process_time() - began_cpu:.1f} s of one CPU;"
          f" {size_text(most)} at most (targets: 30 s, 2.00 GiB)")  # fmt: skip


if __name__ == "__main__":
    main()
