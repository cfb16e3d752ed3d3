"""8-bit training by torchao: matrix products in float8, or weights in int8."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal, get_args

import torch
from torch.nn import Linear, Module

from fulmen.fabric.arguments import check_flag
from fulmen.fabric.class_names import class_name
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.optional_packages import require
from fulmen.fabric.precision.base import UniformPrecision

Mode = Literal["float8", "int8"]
Recipe = Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"]
_WEIGHTS: Final = (torch.float32, torch.bfloat16)
# What a matrix product of 8-bit numbers needs of both axes of a weight.
_MULTIPLE: Final = 16


class TorchAOPrecision(UniformPrecision):
    """Linear layers compute in float8, or hold their weights in int8; for training, in forward and backward.

    | `mode` | weights | products | runs on |
    | --- | --- | --- | --- |
    | "float8" | in `dtype` | of float8 numbers, scaled anew each time | GPUs with float8; elsewhere emulated |
    | "int8" | in int8, one scale for each row; steps round at random | in `dtype` | one device of any kind |

    Args:
        mode: See above.
        dtype: Of all that is not in 8 bits: float32 or bfloat16.
        recipe: How float8 numbers are scaled: for a tensor, a row, or a row with gradients of weights in `dtype`.
        emulate: Round to float8 and multiply in `dtype`; None does so where the device has no such products.
        ignore_modules: Names of layers that stay as they are, with all inside of them: {"head"}.

    Layers whose sizes are no multiples of 16 stay as they are, too.

    Raises:
        MissingPackageError: If torchao is not installed.
        ConfigurationError: If an argument is unknown.
    """

    def __init__(
        self,
        mode: Mode = "float8",
        dtype: torch.dtype = torch.bfloat16,
        recipe: Recipe = "tensorwise",
        emulate: bool | None = None,
        ignore_modules: Iterable[str] = (),
    ) -> None:
        for name, value, known in (("mode", mode, get_args(Mode)), ("recipe", recipe, get_args(Recipe))):
            if value not in known:
                raise ConfigurationError(
                    f"TorchAOPrecision({name}={value!r}) is unknown. It says how numbers of 8 bits are used."
                    f" Pass one of {', '.join(map(repr, known))}."
                )
        if dtype not in _WEIGHTS:
            raise ConfigurationError(
                f"TorchAOPrecision(dtype={dtype!r}) cannot hold what is not in 8 bits. Gradients are in that type."
                " Pass torch.float32 or torch.bfloat16."
            )
        if emulate is not None:
            check_flag(self, "emulate", emulate)
        if mode == "int8" and (emulate is not None or recipe != "tensorwise"):
            raise ConfigurationError(
                f"TorchAOPrecision(mode='int8', recipe={recipe!r}, emulate={emulate!r}) has arguments for float8."
                " Weights of int8 need none of them. Leave recipe and emulate out."
            )
        if isinstance(ignore_modules, str):
            raise ArgumentTypeError(
                f"TorchAOPrecision(ignore_modules={ignore_modules!r}) is a text, of which each letter would be a name."
                f" Several layers can be named. Pass a set: {{{ignore_modules!r}}}."
            )
        super().__init__(dtype)
        require("torchao", purpose="TorchAOPrecision", pip="torchao")
        self.precision = f"torchao-{mode}"
        self.parameters_may_be = "alone" if mode == "int8" else "split"
        self._mode, self._recipe, self._emulate = mode, recipe, emulate
        self._ignored = frozenset(ignore_modules)

    def convert_module(self, module: Module) -> Module:
        """The module in `dtype`, its linear layers exchanged.

        Raises:
            ConfigurationError: If there is no layer to exchange, or a name that names none.
        """
        module = super().convert_module(module)
        names = {name for name, _ in module.named_modules()}
        if unknown := sorted(self._ignored - names):
            raise ConfigurationError(
                f"TorchAOPrecision(ignore_modules={set(self._ignored)!r}) names {unknown[0]!r}, which"
                f" {class_name(module)} does not have. It would change nothing. Pass names of named_modules()."
            )
        if self._is_exchanged(module):
            return module
        if not any(self._takes(part, name) for name, part in module.named_modules()):
            raise ConfigurationError(
                f"TorchAOPrecision found no layer to exchange in {class_name(module)}. It exchanges Linear layers"
                f" whose sizes are multiples of {_MULTIPLE} and that are not ignored. Choose such sizes, or leave the"
                " precision out."
            )
        if self._mode == "float8":
            return self._to_float8(module)
        return self._to_int8(module)

    def _is_exchanged(self, module: Module) -> bool:
        kinds = {kind.__module__.partition(".")[0] for part in module.modules() for kind in (type(part),)}
        kinds |= {type(one).__module__.partition(".")[0] for one in module.parameters()}
        return "torchao" in kinds

    def _takes(self, part: Module, name: str) -> bool:
        if not isinstance(part, Linear) or part.in_features % _MULTIPLE or part.out_features % _MULTIPLE:
            return False
        places = name.split(".")
        return not any(".".join(places[:depth]) in self._ignored for depth in range(1, len(places) + 1))

    def _to_float8(self, module: Module) -> Module:
        float8: Any = require("torchao.float8", purpose="TorchAOPrecision")
        config: Any = float8.Float8LinearConfig.from_recipe_name(self._recipe)
        emulate = not _multiplies_float8(module) if self._emulate is None else self._emulate
        object.__setattr__(config, "emulate", emulate)  # recipes are frozen, and leave it open
        return float8.convert_to_float8_training(module, module_filter_fn=self._takes, config=config)  # type: ignore[no-any-return]

    def _to_int8(self, module: Module) -> Module:
        training: Any = require("torchao.prototype.quantized_training", purpose="TorchAOPrecision(mode='int8')")
        quantization: Any = require("torchao.quantization", purpose="TorchAOPrecision(mode='int8')")
        # So that checkpoints may hold them: tensors, and no code.
        torch.serialization.add_safe_globals([training.Int8QuantizedTrainingLinearWeight])
        quantization.quantize_(module, training.int8_weight_only_quantized_training(), filter_fn=self._takes)
        return module


def _multiplies_float8(module: Module) -> bool:
    device = next((one.device for one in module.parameters()), torch.device("cpu"))
    if device.type != "cuda":
        # The module is moved later: to the GPU, where there is one.
        device = torch.device("cuda") if torch.cuda.is_available() else device
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
