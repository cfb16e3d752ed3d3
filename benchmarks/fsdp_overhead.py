"""What a step of two processes costs under FSDP through the Trainer, beside the same step in a hand-written loop.

Batches of 4 per process, SGD, two processes that talk by gloo, one CPU thread each; a linear layer, or a small net of
three units, split by torch's `fully_shard`. The loop by hand runs inside of the other one's data set: when that asks
for the first sample of a block, the loop by hand makes a block of its own. So both are under way in the same two
processes and take turns, and what else the machine does hits both. README.md beside this file says how to read the
table.

    python benchmarks/fsdp_overhead.py
    python benchmarks/fsdp_overhead.py --rounds 31
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed.fsdp  # here, once, and not in each process
from ddp_overhead import (
    NUM_COUNTED_STEPS,
    NUM_PROCESSES,
    count_in_turns,
    heading,
    read_plan,
    table,
)
from step_overhead import BATCH_SIZE, LEARNING_RATE, NUM_FEATURES, Rows, trainer_flags
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from turns import NUM_WARM_UP_BLOCKS, Loop, Plan, Round, Runner, Turns, in_turns

from fulmen.fabric import Fabric
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.launchers.spawn import SpawnLauncher
from fulmen.fabric.strategies import FSDPStrategy as FabricFSDP
from fulmen.trainer import LightningModule, Trainer
from fulmen.trainer.strategies import FSDPStrategy, ModelParallelStrategy


class Block(nn.Module):
    """A unit: gathered before it runs, and let go."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(NUM_FEATURES, 64), nn.Linear(64, NUM_FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.down(torch.tanh(self.up(x)))
        return found


MODELS: dict[str, Callable[[], nn.Module]] = {
    "Linear(32, 2)": lambda: nn.Sequential(nn.Linear(NUM_FEATURES, 2)),
    "two blocks of two layers, and Linear(32, 2)": lambda: nn.Sequential(Block(), Block(), nn.Linear(NUM_FEATURES, 2)),
}


def shards(model: nn.Module) -> list[Tensor]:
    """What this process holds of the weights."""
    parameters: Iterable[Any] = model.parameters()
    return [parameter.detach().to_local().clone() for parameter in parameters]


def has_blocks(model: nn.Module) -> bool:
    """Are there units beside the module itself?"""
    return any(isinstance(part, Block) for part in model.modules())


def make_by_hand(make_model: Callable[[], nn.Module], rows: Dataset[Any]) -> tuple[Loop, nn.Module]:
    """The reference: the loop that one would write by hand."""
    torch.manual_seed(0)
    model = make_model()
    mesh = init_device_mesh("cpu", (NUM_PROCESSES,))
    for part in model:  # type: ignore[attr-defined]
        if isinstance(part, Block):
            fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    sampler: DistributedSampler[Tensor] = DistributedSampler(rows, NUM_PROCESSES, shuffle=False)

    def step(batch: Tensor) -> None:
        loss = model(batch).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Loop(DataLoader(rows, batch_size=BATCH_SIZE, sampler=sampler), step, nn.Linear(1, 1)), model


def run_by_hand(make_model: Callable[[], nn.Module], rows: Dataset[Any]) -> nn.Module:
    """The reference, as a subject: it shows the noise."""
    loop, model = make_by_hand(make_model, rows)
    for batch in loop.batches:
        loop.step(batch)
    return model


def run_fabric(make_model: Callable[[], nn.Module], rows: Dataset[Any]) -> nn.Module:
    """The same loop, set up by Fabric."""
    torch.manual_seed(0)
    module = make_model()
    strategy = FabricFSDP(auto_wrap_policy={Block} if has_blocks(module) else None)
    fabric = Fabric(accelerator="cpu", devices=NUM_PROCESSES, strategy=strategy)
    fabric.launch()
    model, optimizer = fabric.setup(module, torch.optim.SGD(module.parameters(), lr=LEARNING_RATE))
    for batch in fabric.setup_dataloaders(DataLoader(rows, batch_size=BATCH_SIZE)):
        loss = model(batch).sum()
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
    return module


class Job(LightningModule):
    """The same step, for the Trainer."""

    def __init__(self, make_model: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = make_model()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.model(batch).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)


def run_trainer(
    strategy: Callable[[nn.Module], Any], make_model: Callable[[], nn.Module], rows: Dataset[Any]
) -> nn.Module:
    """An epoch of `Trainer.fit`, all off."""
    job = Job(make_model)
    flags = trainer_flags("fulmen.trainer", "off", "")
    trainer = Trainer(max_epochs=1, accelerator="cpu", devices=NUM_PROCESSES, strategy=strategy(job.model), **flags)
    trainer.fit(job, DataLoader(rows, batch_size=BATCH_SIZE))
    return job.model


def by_fsdp(model: nn.Module) -> Any:
    """The strategy of the Trainer."""
    return FSDPStrategy(auto_wrap_policy={Block} if has_blocks(model) else None)


def by_plan(model: nn.Module) -> Any:
    """The same split, said by a plan."""
    return ModelParallelStrategy(plan={"model.[01]" if has_blocks(model) else "": "shard"})


Subject = Callable[[Callable[[], nn.Module], Dataset[Any]], nn.Module]
SUBJECTS: dict[str, Subject] = {
    "hand-written FSDP2 again": run_by_hand,
    "Fabric, strategy fsdp": run_fabric,
    "Trainer, strategy fsdp": partial(run_trainer, by_fsdp),
    "Trainer, a plan": partial(run_trainer, by_plan),
}


def run_round(subject: Subject, make_model: Callable[[], nn.Module], rows: Dataset[Any], plan: Plan) -> Round:
    """A subject and the loop by hand in turns, and see that they did the same."""
    loop, by_hand = make_by_hand(make_model, rows)
    reference = Runner(loop)
    models: list[nn.Module] = []
    block = plan.num_steps * BATCH_SIZE
    pairs = in_turns(
        reference,
        plan.num_steps,
        lambda take_turn: models.append(subject(make_model, Turns(rows, block, take_turn))),
    )
    [model] = models
    if not all(map(torch.equal, shards(model), shards(by_hand))):
        raise RuntimeError(
            f"{subject} came to other weights than the hand-written loop. It did other work, so its time says nothing."
            " Find out which step differs before measuring it."
        )
    return Round(pairs)


def count_collectives(subject: Subject, make_model: Callable[[], nn.Module], rows: Dataset[Any]) -> dict[str, float]:
    """The collectives of one step."""
    block = NUM_COUNTED_STEPS * BATCH_SIZE
    return count_in_turns(lambda take_turn: subject(make_model, Turns(rows, block, take_turn)))


Found = dict[str, tuple[list[Round], dict[str, float]]]


def measure(plan: Plan, answer: Any) -> None:
    """All rounds of all subjects with all models; runs in each process, and the first one answers."""
    torch.set_num_threads(1)
    logging.disable(logging.INFO)  # how each of the many fits ended
    warnings.simplefilter("ignore")
    Fabric(accelerator="cpu", devices=NUM_PROCESSES, strategy=FabricFSDP()).launch()  # opens the process group
    rows, few = (
        Rows(num_steps * BATCH_SIZE * NUM_PROCESSES)
        for num_steps in ((plan.num_blocks + NUM_WARM_UP_BLOCKS + 2) * plan.num_steps, 3 * NUM_COUNTED_STEPS)
    )
    found: dict[str, Found] = {}
    for name, make_model in MODELS.items():
        found[name] = {title: ([], count_collectives(subject, make_model, few)) for title, subject in SUBJECTS.items()}
    for _ in range(plan.num_rounds):
        for name, make_model in MODELS.items():
            for title, subject in SUBJECTS.items():
                found[name][title][0].append(run_round(subject, make_model, rows, plan))
    if torch.distributed.get_rank() == 0:
        torch.save(found, answer)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plan, _ = read_plan(parser, arguments, Plan(15, 30, 10))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="fsdp_overhead_") as folder:
        answer = os.path.join(folder, "found.pt")
        SpawnLauncher(LightningEnvironment(), NUM_PROCESSES, start_method="fork").launch(measure, plan, answer)
        every: dict[str, Found] = torch.load(answer, weights_only=False)
    print(
        "\n\n".join(
            f"{heading(found, plan, f'{name}, batch {BATCH_SIZE}')}\n\n{table(found, plan)}"
            for name, found in every.items()
        )
    )


if __name__ == "__main__":
    main()
