"""Split a module over a mesh as a plan says: tensors by torch's `parallelize_module`, the rest by `fully_shard`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import Module

from fulmen.fabric.class_names import class_name
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.strategies.context_parallel import attend_together, check_attention
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
    num_parts = mesh[TENSOR].size()
    matched = check_plan(module, plan, num_parts, 1 if context is None else context.size())
    if is_split(module):
        raise ConfigurationError(
            f"ModelParallelStrategy(plan=...) got {class_name(module)}, which is split already. The plan would split"
            " it once more. Leave the plan out, or do not split the module in configure_model or before setup."
        )
    take_values_of_rank_zero(module, device)
    if num_parts > 1:
        split_tensors(module, matched, mesh[TENSOR])
    if context is not None:
        for name, way in matched.attentions.items():
            attend_together(module.get_submodule(name), name, way, context.get_group())
    _split_over_data(module, matched, mesh)


def check_plan(module: Module, plan: Plan, num_parts: int, context: int) -> Matched:
    """What the plan names in the module; looks at both only.

    Args:
        module: Not split yet.
        plan: What is split, and how.
        num_parts: The size of the tensor axis.
        context: How many processes share a sequence.

    Raises:
        ConfigurationError: If the plan does not fit the module or the sizes.
    """
    matched = plan.match(module)
    if num_parts > 1:
        if not plan.splits_tensors:
            raise ConfigurationError(
                f"ModelParallelStrategy(plan=..., tensor_parallel_size={num_parts}) splits nothing over the tensor"
                " axis. Its processes would all compute the same. Name parts of the module as 'column' and 'row', or"
                " pass tensor_parallel_size=1."
            )
        check_parts(module, matched, num_parts)
    if context > 1:
        for name, way in matched.attentions.items():
            check_attention(module.get_submodule(name), name, way)
    return matched


def check_parts(module: Module, matched: Matched, num_parts: int) -> None:
    """Refuse what cannot be split over so many processes."""
    for name, style in matched.tensors.items():
        part = module.get_submodule(name)
        if style.kind not in (COLUMN, ROW):
            continue
        if not isinstance(part, nn.Linear | nn.Embedding):
            raise ConfigurationError(
                f"ModelParallelStrategy(plan={{...: {style.text!r}}}) names {name!r}, a {class_name(part)}. Linear"
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
def take_values_of_rank_zero(module: Module, device: torch.device) -> None:
    """Processes that drew other numbers would hold parts of other modules."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if not tensor.is_meta:
            here = tensor.detach().to(device).contiguous()
            dist.broadcast(here, src=0)
            tensor.copy_(here)


def split_tensors(module: Module, matched: Matched, mesh: DeviceMesh) -> None:
    """Split tensors over the tensor axis; `matched` may name some parts of the module only."""
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
    over = data_mesh(mesh)
    if over.size() == 1:
        return
    from torch.distributed.fsdp import fully_shard

    split_units(module, matched.units, over)
    fully_shard(module, mesh=over)


def data_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The processes that see other data than this one."""
    names = mesh.mesh_dim_names or ()
    return mesh[REPLICATE, DATA] if REPLICATE in names else mesh[DATA]


def split_units(module: Module, units: Iterable[str], over: DeviceMesh) -> None:
    """Split these parts of a module over the data axes; the rest of it is to follow."""
    from torch.distributed.fsdp import fully_shard

    # Inner units before those that hold them; the module itself holds what is in none.
    for name in sorted(filter(None, units), key=lambda name: -name.count(".")):
        unit = module.get_submodule(name)
        if any(True for _ in unit.parameters()):
            fully_shard(unit, mesh=over)
