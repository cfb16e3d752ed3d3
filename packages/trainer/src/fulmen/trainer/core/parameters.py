"""Parameters of a module: which are one and the same, how large their gradients are, and how these are bounded."""

from typing import Any

import torch
from torch import Tensor, nn

from fulmen.fabric.class_names import class_name
from fulmen.fabric.enums import LightningEnum
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.trees import map_tensors

# The distance from 1 to the next larger number.
FLOAT16_EPSILON = torch.finfo(torch.float16).eps
FLOAT32_EPSILON = torch.finfo(torch.float32).eps
FLOAT64_EPSILON = torch.finfo(torch.float64).eps


class GradClipAlgorithmType(LightningEnum):
    """How gradients are bounded: each by its value, or all together by their norm."""

    VALUE = "value"
    NORM = "norm"

    @staticmethod
    def supported_type(val: str) -> bool:
        """Is `val` one of them?"""
        return val in GradClipAlgorithmType.supported_types()

    @staticmethod
    def supported_types() -> list[str]:
        """All of them, as users write them."""
        return [kind.value for kind in GradClipAlgorithmType]


def find_shared_parameters(module: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several, in the order of the module.

    >>> layer = nn.Linear(2, 2)
    >>> find_shared_parameters(nn.Sequential(layer, nn.ReLU(), layer))
    [['0.weight', '2.weight'], ['0.bias', '2.bias']]
    """
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [several for several in names.values() if len(several) > 1]


def set_shared_parameters(module: nn.Module, shared_params: list[list[str]]) -> nn.Module:
    """Makes the parameters of each list of names one again: the first of them; in place.

    Some devices hold a copy for each name after a module was moved.

    Raises:
        ConfigurationError: If the module has no parameter of such a name.
    """
    for first, *others in shared_params:
        parameter = _get(module, first)
        for name in others:
            _get(module, name)
            owner, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(owner), attribute, parameter)
    return module


def _get(module: nn.Module, name: str) -> nn.Parameter:
    try:
        return module.get_parameter(name)
    except AttributeError as error:
        raise ConfigurationError(
            f"set_shared_parameters(...) names {name!r}, which {class_name(module)} does not have."
            " Names are those of named_parameters(). Pass what find_shared_parameters() returned."
        ) from error


def grad_norm(module: nn.Module, norm_type: float | int | str, group_separator: str = "/") -> dict[str, float]:
    """The norm of each gradient, and of all together; for `self.log_dict`. All are read from the device at once.

    Args:
        module: Its parameters that have a gradient count.
        norm_type: The p of the p-norm; "inf" for the largest value.
        group_separator: Between the kind of norm and the parameter's name.

    Returns:
        For p = 2: "grad_2.0_norm/layer.weight", ..., and "grad_2.0_norm_total". Nothing without gradients.

    Raises:
        ConfigurationError: If `norm_type` is not above zero.
    """
    p = float(norm_type)
    if not p > 0:
        raise ConfigurationError(
            f"grad_norm(norm_type={norm_type!r}) is no norm. The p of a p-norm is above zero."
            " Pass 2, 1 or 'inf', for example."
        )
    found = [(name, parameter.grad) for name, parameter in module.named_parameters() if parameter.grad is not None]
    if not found:
        return {}
    device = found[0][1].device
    norms = torch.stack([torch.linalg.vector_norm(grad.detach(), p).to(device, torch.float64) for _, grad in found])
    *each, total = torch.cat([norms, torch.linalg.vector_norm(norms, p).reshape(1)]).tolist()
    named: dict[str, float] = {
        f"grad_{p}_norm{group_separator}{name}": norm for (name, _), norm in zip(found, each, strict=True)
    }
    named[f"grad_{p}_norm_total"] = total
    return named


def recursive_detach(in_dict: Any, to_cpu: bool = False) -> Any:
    """A nest of tensors without their graphs, on the CPU if wanted."""

    def detached(tensor: Tensor) -> Tensor:
        return tensor.detach().cpu() if to_cpu else tensor.detach()

    return map_tensors(in_dict, detached)
