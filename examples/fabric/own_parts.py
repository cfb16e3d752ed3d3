"""Parts of your own: a kind of hardware, and a way for processes to train together; both chosen by name.

python examples/fabric/own_parts.py
"""

from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.fabric import Fabric
from fulmen.fabric.accelerators import ACCELERATOR_REGISTRY, CPUAccelerator
from fulmen.fabric.strategies import STRATEGY_REGISTRY, DDPStrategy


class OneCore(CPUAccelerator):
    """CPU, of which each process uses one core."""

    def setup_device(self, device: torch.device) -> None:
        super().setup_device(device)
        torch.set_num_threads(1)

    @staticmethod
    def name() -> str:
        return "one_core"


class LocalSGD(DDPStrategy):
    """Each process trains alone, and every few steps they go on from the mean of their weights.

    That is one exchange where DDP has `every`: for processes that are far from each other.
    """

    def __init__(self, every: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.every = every
        self.num_steps = self.num_exchanges = 0

    def setup_module(self, module: nn.Module) -> nn.Module:
        for value in module.state_dict().values():
            value.copy_(self.broadcast(value))
        return module  # not wrapped in DistributedDataParallel: nothing is exchanged in backward

    def optimizer_step(self, optimizer: Any, **kwargs: Any) -> Any:
        result = super().optimizer_step(optimizer, **kwargs)
        self.num_steps += 1
        if self.num_steps % self.every == 0:
            self.num_exchanges += 1
            with torch.no_grad():
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.copy_(self.all_reduce(parameter.clone(), reduce_op="mean"))
        return result


ACCELERATOR_REGISTRY.register("one_core", OneCore)
STRATEGY_REGISTRY.register("local_sgd", LocalSGD, every=8)


def train(fabric: Fabric) -> None:
    fabric.seed_everything(1 + fabric.global_rank, verbose=False)  # so that what is equal was made equal
    digits = load_digits()
    data = TensorDataset(torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target))
    loader = fabric.setup_dataloaders(DataLoader(data, batch_size=28, drop_last=True))
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.2))
    for epoch in range(4):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            fabric.backward(loss)
            optimizer.step()
        fabric.print(f"epoch {epoch}: loss {fabric.all_reduce(loss.detach()):.4f}")
    weights = fabric.all_gather(next(model.parameters()).detach())
    strategy = fabric.strategy
    fabric.print(
        f"{strategy.num_exchanges} exchanges in {strategy.num_steps} steps, {torch.get_num_threads()} core each"
    )
    fabric.print(f"the same weights everywhere: {torch.equal(weights[0], weights[1])}")


def main() -> None:
    Fabric(accelerator="one_core", strategy="local_sgd", devices=2).launch(train)


if __name__ == "__main__":
    main()
