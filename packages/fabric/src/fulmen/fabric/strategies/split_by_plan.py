"""Split a module over a mesh as a plan says: tensors by torch's `parallelize_module`, the rest by `fully_shard`."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import Module

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.strategies.context_parallel import attend_together
from fulmen.fabric.strategies.mesh_axes import DATA, REPLICATE, TENSOR
from fulmen.fabric.strategies.plan import COLUMN, FEATURES, ROW, SEQUENCE, WHOLE, Matched, Plan, Style
from fulmen.fabric.strategies.plan import REPLICATE as WHOLE_PARAMETERS
from fulmen.fabric.strategies.sharded_tensors import is_split


def split_by_plan(
    module: Module, plan: Plan, mesh: DeviceMesh, device: torch.device, context: DeviceMesh | None = None
) -> None:
    """Split the parameters of the module. All processes must call it; they get the values that rank 0 has.

    Args:
        module: In the memory of the machine, on the device, or without memory.
        plan: What is split, and how.
        mesh: Of the axes of `mesh_axes`.
        device: Of this process.
        context: The processes that share sequences with this one, if there are.

    Raises:
        ConfigurationError: If the plan does not fit the module or the mesh.
    """
    matched = plan.match(module)
    if is_split(module):
        raise ConfigurationError(
            f"ModelParallelStrategy(plan=...) got {type(module).__name__}, which is split already. The plan would split"
            " it once more. Leave the plan out, or do not split the module in configure_model or before setup."
        )
    num_parts = mesh[TENSOR].size()
    if num_parts > 1:
        if not plan.splits_tensors:
            raise ConfigurationError(
                f"ModelParallelStrategy(plan=..., tensor_parallel_size={num_parts}) splits nothing over the tensor"
                " axis. Its processes would all compute the same. Name parts of the module as 'column' and 'row', or"
                " pass tensor_parallel_size=1."
            )
        _check_parts(module, matched, num_parts)
    _take_values_of_rank_zero(module, device)
    if num_parts > 1:
        _split_tensors(module, matched, mesh[TENSOR])
    if context is not None:
        for name, way in matched.attentions.items():
            attend_together(module.get_submodule(name), name, way, context.get_group())
    _split_over_data(module, matched, mesh)


def _check_parts(module: Module, matched: Matched, num_parts: int) -> None:
    for name, style in matched.tensors.items():
        part = module.get_submodule(name)
        if style.kind not in (COLUMN, ROW):
            continue
        if not isinstance(part, nn.Linear | nn.Embedding):
            raise ConfigurationError(
                f"ModelParallelStrategy(plan={{...: {style.text!r}}}) names {name!r}, a {type(part).__name__}. Linear"
                " layers and embeddings are split by columns and rows. Name the layers inside of it, or pass a"
                " ParallelStyle of your own."
            )
        size = _size_along(part, style.kind)
        if size % num_parts:
            raise ConfigurationError(
                f"ModelParallelStrategy(tensor_parallel_size={num_parts}) cannot split {name!r} as {style.text!r}: its"
                f" {size} {'columns' if style.kind == COLUMN else 'rows'} are no multiple of {num_parts}."
                " Every process has as many. Change the size of the layer, or of the axis."
            )


def _size_along(part: nn.Linear | nn.Embedding, kind: str) -> int:
    if isinstance(part, nn.Embedding):
        return part.embedding_dim if kind == COLUMN else part.num_embeddings
    return part.out_features if kind == COLUMN else part.in_features


@torch.no_grad()
def _take_values_of_rank_zero(module: Module, device: torch.device) -> None:
    """Processes that drew other numbers would hold parts of other modules."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if not tensor.is_meta:
            here = tensor.detach().to(device).contiguous()
            dist.broadcast(here, src=0)
            tensor.copy_(here)


def _split_tensors(module: Module, matched: Matched, mesh: DeviceMesh) -> None:
    from torch.distributed.tensor.parallel import parallelize_module

    for name, style in matched.tensors.items():
        part = module.get_submodule(name)
        torch_style = _torch_style(style, part)
        if torch_style is not None:
            parallelize_module(part, mesh, torch_style, src_data_rank=None)


def _torch_style(style: Style, part: Module) -> Any:
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor import parallel as torch_styles

    layouts = {WHOLE: Replicate(), SEQUENCE: Shard(1), FEATURES: Shard(-1)}
    if style.own is not None:
        return style.own
    if style.kind == SEQUENCE:
        return torch_styles.SequenceParallel(use_local_output=True)
    source = style.source or (WHOLE if isinstance(part, nn.Embedding) else FEATURES)
    before, after = layouts[source], layouts[style.target or WHOLE]
    if style.kind == COLUMN:
        return torch_styles.ColwiseParallel(input_layouts=before, output_layouts=after)
    if style.kind == ROW:
        return torch_styles.RowwiseParallel(input_layouts=before, output_layouts=after)
    assert style.kind == WHOLE_PARAMETERS
    whole = layouts[WHOLE]
    if source != WHOLE and style.target != WHOLE:
        return torch_styles.PrepareModuleInputOutput(
            input_layouts=before,
            desired_input_layouts=whole,
            use_local_input=True,
            output_layouts=whole,
            desired_output_layouts=after,
        )
    if source != WHOLE:
        return torch_styles.PrepareModuleInput(input_layouts=before, desired_input_layouts=whole, use_local_output=True)
    if style.target != WHOLE:
        return torch_styles.PrepareModuleOutput(output_layouts=whole, desired_output_layouts=after)
    return None


def _split_over_data(module: Module, matched: Matched, mesh: DeviceMesh) -> None:
    names = mesh.mesh_dim_names or ()
    over = mesh[REPLICATE, DATA] if REPLICATE in names else mesh[DATA]
    if over.size() == 1:
        return
    from torch.distributed.fsdp import fully_shard

    # Inner units before those that hold them; the module itself holds what is in none.
    for name in sorted(filter(None, matched.units), key=lambda name: -name.count(".")):
        unit = module.get_submodule(name)
        if any(True for _ in unit.parameters()):
            fully_shard(unit, mesh=over)
    fully_shard(module, mesh=over)
