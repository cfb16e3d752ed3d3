"""Two models that learn from each other, with an optimizer each: a generator of handwritten digits.

python examples/fabric/gan.py
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

from fulmen.fabric import Fabric

NOISE = 16


def build(*sizes: int) -> nn.Sequential:
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.LeakyReLU(0.2))]
    return nn.Sequential(*layers[:-1])


def drawn(image: torch.Tensor) -> str:
    shades = " .:-=+*#%@"
    rows = (image.reshape(8, 8) * 9.99).clamp(0, 9).int().tolist()
    return "\n".join("".join(shades[value] * 2 for value in row) for row in rows)


def main() -> None:
    fabric = Fabric()
    fabric.launch()
    fabric.seed_everything(2, verbose=False)
    digits = load_digits()
    zeros = torch.from_numpy(digits.data[digits.target == 0]).float() / 16  # (178, 64): one digit is enough to see it
    loader = fabric.setup_dataloaders(DataLoader(zeros, batch_size=32, shuffle=True, drop_last=True))

    generator = nn.Sequential(build(NOISE, 64, 64), nn.Sigmoid())
    critic = build(64, 64, 1)
    adam = {"lr": 2e-3, "betas": (0.5, 0.99)}
    generator, generator_optimizer = fabric.setup(generator, torch.optim.Adam(generator.parameters(), **adam))
    critic, critic_optimizer = fabric.setup(critic, torch.optim.Adam(critic.parameters(), **adam))

    def gap() -> float:
        """How far the mean image is from that of the real ones."""
        with torch.no_grad():
            made = generator(torch.randn(512, NOISE, device=fabric.device))
        return (made.mean(0) - zeros.to(fabric.device).mean(0)).abs().mean().item()

    fabric.print(f"before: gap {gap():.3f}")
    for _ in range(80):
        for real in loader:
            made = generator(torch.randn(len(real), NOISE, device=fabric.device))

            # The critic learns to tell them apart; the generator does not hear of it.
            loss = F.softplus(-critic(real)).mean() + F.softplus(critic(made.detach())).mean()
            critic_optimizer.zero_grad()
            fabric.backward(loss)
            critic_optimizer.step()

            # The generator learns to be taken for real. What the critic gets here, it drops before its next step.
            loss = F.softplus(-critic(made)).mean()
            generator_optimizer.zero_grad()
            fabric.backward(loss)
            generator_optimizer.step()
    fabric.print(f"after:  gap {gap():.3f}")
    with torch.no_grad():
        fabric.print(drawn(generator(torch.randn(1, NOISE, device=fabric.device)).cpu()))


if __name__ == "__main__":
    main()
