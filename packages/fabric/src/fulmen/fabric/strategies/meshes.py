"""Every mesh that some processes can form, as strategies: for tests of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fulmen.fabric.strategies.base import Strategy
from fulmen.fabric.strategies.mesh_axes import DATA, REPLICATE, TENSOR, every_mesh
from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy
from fulmen.fabric.strategies.pipeline.cuts import Pipeline
from fulmen.fabric.strategies.plan import Plan


def meshes(
    num_processes: int,
    plan: Mapping[str, Any],
    *,
    largest_tensor_parallel_size: int | None = None,
    pipeline: Pipeline | None = None,
) -> dict[str, Strategy]:
    """A `ModelParallelStrategy` for every mesh that so many processes can form, for `assert_parity`.

    Args:
        num_processes: How many processes.
        plan: As for `ModelParallelStrategy`. Where it splits no tensors, no mesh has a tensor axis; where it splits
            sequences, there is every context too.
        largest_tensor_parallel_size: Leave out what splits tensors over more processes, as where heads do not divide.
        pipeline: Cuts the module into stages, in every mesh.
    """
    found: dict[str, Strategy] = {}
    named = Plan(plan)
    for sizes in every_mesh(num_processes, 1 if pipeline is None else pipeline.size("auto")):
        tensors = sizes.of(TENSOR)
        if tensors > 1 and (not named.splits_tensors or tensors > (largest_tensor_parallel_size or tensors)):
            continue
        for context in range(1, sizes.of(DATA) + 1 if named.splits_sequences else 2):
            if sizes.of(DATA) % context:
                continue
            shown = [f"{axis} {sizes.of(axis)}" for axis in sizes.names] + [f"context {context}"] * (context > 1)
            found[" x ".join(shown)] = ModelParallelStrategy(
                plan=plan,
                replicate_size=sizes.of(REPLICATE),
                data_parallel_size=sizes.of(DATA),
                tensor_parallel_size=tensors,
                context_parallel_size=context,
                pipeline=pipeline,
            )
    return found
