"""Gradients that an engine of DeepSpeed has added up and not stepped with: taken out for a checkpoint, and put back.

The engine hands them out to nobody. Where each kind of its optimizers adds them up stands here and nowhere else: in
`parameter.grad` until the step without ZeRO and with stage 1, in lists of means with stage 2, in buffers on the CPU
where the optimizer is offloaded, and in one flat buffer with stage 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fulmen.fabric.compiled import plain_parameters

Taken = dict[str, Any]
# What the engine counts from one step to the next.
_COUNTS = ("micro_steps", "_unmanaged_backward_count")


def has_gradients(engine: Any) -> bool:
    """Were there batches since the last step of this engine?"""
    if not engine.managed_gradient_accumulation():
        return bool(engine._unmanaged_backward_count)
    # It counts calls of `step`, of which the last in a window steps.
    return bool(engine.micro_steps % engine.gradient_accumulation_steps())


def take_gradients(engine: Any) -> Taken | None:
    """What this process has added up, in the memory of the machine; None if this DeepSpeed keeps it elsewhere."""
    try:
        parameters = {
            name: {key: _copy(grad) for key in ("grad", "grad_accum") if (grad := getattr(one, key, None)) is not None}
            for name, one in _trained(engine).items()
        }
        found = {
            "engine": {name: getattr(engine, name) for name in _COUNTS},
            "parameters": {name: grads for name, grads in parameters.items() if grads},
            "optimizer": _kind(engine)[0](engine.optimizer, list(_trained(engine).values())),
        }
    except AttributeError:
        return None
    return {"form": _form(engine), **found}


def put_gradients(engine: Any, taken: Mapping[str, Any]) -> bool:
    """Give an engine what `take_gradients` took of one that was set up alike. Was it?"""
    trained = _trained(engine)
    if taken["form"] != _form(engine) or not set(taken["parameters"]) <= set(trained):
        return False
    for name, grads in taken["parameters"].items():
        for key, grad in grads.items():
            setattr(trained[name], key, grad.to(trained[name].device, copy=True))
    _kind(engine)[1](engine.optimizer, list(trained.values()), taken["optimizer"])
    for name, count in taken["engine"].items():
        setattr(engine, name, count)
    return True


def _trained(engine: Any) -> dict[str, Any]:
    return {name: one for name, one in plain_parameters(engine.module).items() if one.requires_grad}


def _form(engine: Any) -> dict[str, Any]:
    """What must be alike here and there, so that each piece has its place."""
    optimizer = engine.optimizer
    return {
        "stage": int(engine.zero_optimization_stage()),
        "optimizer": type(optimizer).__name__,
        "dtype": str(getattr(optimizer, "gradient_accumulation_dtype", "")),
        "offloads": bool(getattr(optimizer, "cpu_offload", False) or getattr(optimizer, "offload_optimizer", False)),
        "shapes": {name: list(getattr(one, "ds_shape", one.shape)) for name, one in _trained(engine).items()},
    }


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


# ---- each kind of optimizer: how to take, how to put

_Take = Callable[[Any, list[Any]], Taken]
_Put = Callable[[Any, list[Any], Mapping[str, Any]], None]


def _kind(engine: Any) -> tuple[_Take, _Put]:
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        return _take_flat, _put_flat
    if hasattr(optimizer, "all_grad_tensors"):
        return _take_lists, _put_lists
    if hasattr(optimizer, "fp32_groups_gradients_flat"):
        return _take_groups, _put_groups
    return _take_none, _put_none


def _take_none(optimizer: Any, parameters: list[Any]) -> Taken:
    return {}


def _put_none(optimizer: Any, parameters: list[Any], taken: Mapping[str, Any]) -> None:
    """They are in the parameters."""


def _take_lists(optimizer: Any, parameters: list[Any]) -> Taken:
    """Stages 1 and 2: with 2, means of what this process steps with, or of the parts of that on the CPU."""
    offloaded = getattr(optimizer, "accumulated_grads_in_cpu", {})
    groups = range(len(optimizer.bit16_groups))
    compact = [index for index in groups if optimizer._use_compact_grad_partition_buffer(index)]
    flats = {index: optimizer.averaged_gradients.get(index) for index in compact}
    return {
        "micro_step_id": optimizer.micro_step_id,
        "overflow": bool(getattr(optimizer, "local_overflow", False)),
        "sums": {index: [_copy(one) for one in sums] for index, sums in optimizer.all_grad_tensors.items() if sums},
        "flats": {index: _copy(flat.flat_partition) for index, flat in flats.items() if flat is not None},
        "offloaded": {index: _copy(one) for index, one in offloaded.items()},
        "active": sorted(getattr(optimizer, "_offload_accumulated_param_ids", ())),
    }


def _put_lists(optimizer: Any, parameters: list[Any], taken: Mapping[str, Any]) -> None:
    optimizer.micro_step_id = taken["micro_step_id"]
    if optimizer.cpu_offload:
        optimizer.local_overflow = taken["overflow"]
    for index, sums in taken["sums"].items():
        here = optimizer.params_in_partition[index]
        optimizer.all_grad_tensors[index] = [
            one.to(parameter.device, copy=True) for one, parameter in zip(sums, here, strict=True)
        ]
    for index, flat in taken["flats"].items():
        optimizer._get_compact_grad_partition_buffer(index).flat_partition.copy_(flat)
    for index, one in taken["offloaded"].items():
        optimizer.accumulated_grads_in_cpu[index] = _buffer_on_cpu(optimizer, index, one)
    if taken["active"]:
        optimizer._offload_accumulated_param_ids.update(taken["active"])


def _buffer_on_cpu(optimizer: Any, index: int, saved: Tensor) -> Tensor:
    if optimizer.low_precision_master_weights_and_grads:  # there is no other copy of them
        group, _, at, count = optimizer.grad_position[index]
        here: Tensor = optimizer.single_partition_of_fp32_groups[group].grad.view(-1).narrow(0, at, count)
        return here.copy_(saved)
    if not optimizer.cpu_offload_pin_memory:
        return saved.to(optimizer.device, copy=True)
    return saved.pin_memory()


def _take_groups(optimizer: Any, parameters: list[Any]) -> Taken:
    """bf16 with sums in 32 bit and stage 1: whole, before the processes exchange them."""
    return {
        "flats": [_copy(flat) for flat in optimizer.fp32_groups_gradients_flat],
        "active": [list(group) for group in optimizer.fp32_groups_has_gradients],
    }


def _put_groups(optimizer: Any, parameters: list[Any], taken: Mapping[str, Any]) -> None:
    for flat, saved in zip(optimizer.fp32_groups_gradients_flat, taken["flats"], strict=True):
        flat.copy_(saved)
    optimizer.fp32_groups_has_gradients = [list(group) for group in taken["active"]]
    for group, active, sums in zip(
        optimizer.bf16_groups, taken["active"], optimizer.fp32_groups_gradients, strict=True
    ):
        for parameter, is_active, one in zip(group, active, sums, strict=True):
            if is_active:
                parameter._hp_grad = one


def _take_flat(optimizer: Any, parameters: list[Any]) -> Taken:
    """Stage 3: of each parameter the mean of this process's part, behind each other."""
    active = optimizer._offload_boundary_param_ids
    return {
        "micro_step_id": optimizer.micro_step_id,
        "is_over": bool(optimizer._epilogue_ran_this_backward),
        "flat": _copy(optimizer.grad_partitions_flat_buffer),
        # Numbers of DeepSpeed, which begin anew in no process alike.
        "active": [index for index, parameter in enumerate(parameters) if parameter.ds_id in active],
    }


@torch.no_grad()
def _put_flat(optimizer: Any, parameters: list[Any], taken: Mapping[str, Any]) -> None:
    optimizer.grad_partitions_flat_buffer.copy_(taken["flat"])
    optimizer.independent_gradient_partition_epilogue()  # what steps looks there
    optimizer._offload_boundary_param_ids.update(parameters[index].ds_id for index in taken["active"])
    optimizer.micro_step_id = taken["micro_step_id"]
    optimizer._epilogue_ran_this_backward = taken["is_over"]
