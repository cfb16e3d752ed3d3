"""8-bit floating-point matrix products on NVIDIA GPUs, through Transformer Engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.nn import LayerNorm, Linear, Module

from fulmen.fabric.arguments import check_flag
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.optional_packages import require
from fulmen.fabric.precision.base import UniformPrecision
from fulmen.fabric.precision.layers import exchange_layers, exchanging_layers
from fulmen.fabric.rank_zero import rank_zero_warn

_NAMES = {torch.bfloat16: "transformer-engine", torch.float16: "transformer-engine-float16"}
# What a matrix product of 8-bit numbers needs of its axes.
_IN_MULTIPLE, _OUT_MULTIPLE = 8, 16


class TransformerEnginePrecision(UniformPrecision):
    """Layers of Transformer Engine compute in fp8; everything else is in 16 bits. Needs an NVIDIA GPU.

    Args:
        weights_dtype: Of parameters, bfloat16 or float16.
        recipe: How fp8 numbers are scaled: a `DelayedScaling`, or its arguments by name ("fp8_format" may be the name
            of a format, such as "HYBRID"). None takes the package's default.
        replace_layers: True and None put Transformer Engine's layers in the place of `Linear` and `LayerNorm`, unless
            the module has some already; False never does.
        fallback_compute_dtype: In which autocast computes what is no layer of Transformer Engine. None takes
            `weights_dtype`.

    Raises:
        MissingPackageError: If Transformer Engine is not installed.
        ConfigurationError: If `weights_dtype` is another one, or the recipe cannot be made of what was given.
    """

    device_types = ("cuda",)

    def __init__(
        self,
        *,
        weights_dtype: torch.dtype,
        recipe: Mapping[str, Any] | Any | None = None,
        replace_layers: bool | None = None,
        fallback_compute_dtype: torch.dtype | None = None,
    ) -> None:
        if weights_dtype not in _NAMES:
            raise ConfigurationError(
                f"TransformerEnginePrecision(weights_dtype={weights_dtype!r}) cannot hold weights in that type. What is"
                " not computed in fp8 is computed in 16 bits. Pass torch.bfloat16 or torch.float16."
            )
        if replace_layers is not None:
            check_flag(self, "replace_layers", replace_layers)
        if fallback_compute_dtype is not None and fallback_compute_dtype not in (*_NAMES, torch.float32):
            raise ConfigurationError(
                f"TransformerEnginePrecision(fallback_compute_dtype={fallback_compute_dtype!r}) cannot be computed in."
                " It is the type of autocast where a layer is none of Transformer Engine's."
                " Pass torch.bfloat16 or torch.float16, or leave it out."
            )
        _transformer_engine("pytorch")
        super().__init__(weights_dtype)
        self.precision = _NAMES[weights_dtype]
        self.weights_dtype = weights_dtype
        self.recipe = _as_recipe(recipe) if isinstance(recipe, Mapping) else recipe
        self.replace_layers = replace_layers
        self.fallback_compute_dtype = fallback_compute_dtype or weights_dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        """fp8."""
        return torch.float8_e4m3fn

    def convert_module(self, module: Module) -> Module:
        """The module in `weights_dtype`, with layers of Transformer Engine unless told otherwise."""
        if self.replace_layers is not False and not any(_is_of_package(layer) for layer in module.modules()):
            module = exchange_layers(module, self._fp8_layer)
        return super().convert_module(module)

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Modules created inside have parameters in `weights_dtype`, and layers of Transformer Engine."""
        return super().module_init_context() if self.replace_layers is False else self._exchanging_as_made()

    @contextmanager
    def _exchanging_as_made(self) -> Iterator[None]:
        with super().module_init_context(), exchanging_layers(self._fp8_layer):
            yield

    def forward_context(self) -> AbstractContextManager[Any]:
        """fp8 in the layers of Transformer Engine, autocast in the others."""
        return self._computing()

    @contextmanager
    def _computing(self) -> Iterator[None]:
        fp8 = _transformer_engine("pytorch").fp8_autocast(enabled=True, fp8_recipe=self.recipe)
        with super().forward_context(), torch.autocast("cuda", dtype=self.fallback_compute_dtype), fp8:
            yield

    def _fp8_layer(self, layer: Module) -> Module | None:
        # Subclasses have a forward of their own, or parents that read their weight.
        replacement: Module
        if isinstance(layer, Linear) and type(layer) is Linear:
            if layer.in_features % _IN_MULTIPLE or layer.out_features % _OUT_MULTIPLE:
                rank_zero_warn(
                    f"A linear layer of {layer.in_features} to {layer.out_features} features is not computed in fp8:"
                    f" they must be multiples of {_IN_MULTIPLE} and {_OUT_MULTIPLE}. Pad them, or leave it as it is."
                )
                return None
            replacement = _transformer_engine("pytorch").Linear(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                params_dtype=self.weights_dtype,
                device=layer.weight.device,
            )
        elif isinstance(layer, LayerNorm) and type(layer) is LayerNorm:
            # It always has both parameters there, over one axis.
            if len(layer.normalized_shape) != 1 or layer.weight is None or layer.bias is None:
                return None
            replacement = _transformer_engine("pytorch").LayerNorm(
                layer.normalized_shape[0],
                eps=layer.eps,
                params_dtype=self.weights_dtype,
                device=layer.weight.device,
            )
        else:
            return None
        # The parameters themselves: an optimizer that was made before knows them.
        for name, parameter in layer.named_parameters():
            setattr(replacement, name, parameter)
        return replacement


def _transformer_engine(module: str) -> Any:
    return require(
        f"transformer_engine.{module}", purpose="TransformerEnginePrecision", pip='"transformer-engine[pytorch]"'
    )


def _is_of_package(layer: Module) -> bool:
    return type(layer).__module__.startswith("transformer_engine.")


def _as_recipe(arguments: Mapping[str, Any]) -> Any:
    recipes = _transformer_engine("common.recipe")
    given = dict(arguments)
    name = given.get("fp8_format")
    if isinstance(name, str):
        if not hasattr(recipes.Format, name):
            known = ", ".join(repr(each.name) for each in recipes.Format)
            raise ConfigurationError(
                f"TransformerEnginePrecision(recipe={given!r}) names a format that Transformer Engine does not know."
                f" It has {known}. Pass one of these."
            )
        given["fp8_format"] = getattr(recipes.Format, name)
    try:
        return recipes.DelayedScaling(**given)
    except TypeError as error:
        raise ConfigurationError(
            f"TransformerEnginePrecision(recipe={dict(arguments)!r}) is no recipe: {error}. What is given here are the"
            " arguments of transformer_engine.common.recipe.DelayedScaling. Pass those, or a recipe."
        ) from error
