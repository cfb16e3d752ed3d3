"""4-bit and 8-bit weights in linear layers, through bitsandbytes.

In all modes but "int8-training" the weights of linear layers are quantized once and do not train: what trains is the
rest of the module, such as adapters, and gradients flow through the frozen layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Linear, Module

from fulmen.fabric.class_names import class_name
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.optional_packages import require
from fulmen.fabric.precision.base import UniformPrecision
from fulmen.fabric.precision.layers import exchange_layers, exchanging_layers
from fulmen.fabric.rank_zero import rank_zero_warn

_MODES = ("nf4", "nf4-dq", "fp4", "fp4-dq", "int8", "int8-training")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# QuantState's own names; they follow "weight." in a checkpoint.
_QUANTIZED = "quant_state.bitsandbytes__"
# Activations above this are multiplied in 16 bits (Dettmers et al. 2022, LLM.int8(), section 3.2).
_OUTLIER_THRESHOLD = 6.0


class BitsandbytesPrecision(UniformPrecision):
    """Linear layers hold 4-bit or 8-bit weights, everything else is in 16 bits. Runs on CUDA devices and on the CPU.

    Weights are quantized by `Fabric.setup`, or as the module is made inside `Fabric.init_module`. Both quantized and
    full-precision checkpoints can be loaded into the result.

    Args:
        mode: "nf4" and "fp4" are types of 4 bits; with "-dq" the quantization constants are quantized too. "int8"
            multiplies 8-bit weights and activations; "int8-training" does so too, with weights that train.
        dtype: In which the result is computed. None takes float16 for the modes of 8 bits, which know no other, and
            else bfloat16 where the device has it.
        ignore_modules: Linear layers whose full name begins with one of these stay as they are: {"lm_head"}.

    Raises:
        MissingPackageError: If bitsandbytes is not installed.
        ConfigurationError: If the mode is unknown, or does not go with the dtype.
        ArgumentTypeError: If `ignore_modules` is one text and not a set of them.
    """

    parameters_may_be = "replicated"  # what belongs to a quantized weight would stay behind

    def __init__(
        self,
        mode: Literal["nf4", "nf4-dq", "fp4", "fp4-dq", "int8", "int8-training"],
        dtype: torch.dtype | None = None,
        ignore_modules: set[str] | None = None,
    ) -> None:
        if mode not in _MODES:
            raise ConfigurationError(
                f"BitsandbytesPrecision(mode={mode!r}) is unknown. Weights are quantized in one of few ways."
                f" Pass one of {', '.join(map(repr, _MODES))}."
            )
        if dtype is not None and dtype not in _DTYPES:
            raise ConfigurationError(
                f"BitsandbytesPrecision({mode!r}, dtype={dtype!r}) cannot compute in that type. bitsandbytes takes"
                f" {', '.join(map(str, _DTYPES))}. Pass one of these, or leave it out."
            )
        if mode.startswith("int8") and dtype not in (None, torch.float16):
            raise ConfigurationError(
                f"BitsandbytesPrecision({mode!r}, dtype={dtype!r}) cannot compute in that type. Activations are"
                " quantized to 8 bits from float16. Leave the dtype out, or pass a mode of 4 bits."
            )
        if isinstance(ignore_modules, str):
            raise ArgumentTypeError(
                f"BitsandbytesPrecision(ignore_modules={ignore_modules!r}) is one text. Each of its letters would be"
                f" taken as a name. Pass a set: {{{ignore_modules!r}}}."
            )
        if ignore_modules is not None and not (
            isinstance(ignore_modules, Set | list | tuple) and all(isinstance(name, str) for name in ignore_modules)
        ):
            raise ArgumentTypeError(
                f"BitsandbytesPrecision(ignore_modules={ignore_modules!r}) is no set of names. Linear layers whose full"
                " name begins with one of them stay as they are. Pass a set, as in {'lm_head'}."
            )
        require("bitsandbytes", purpose=f"BitsandbytesPrecision({mode!r})")
        super().__init__(torch.float16 if dtype is None else dtype)
        self.mode = mode
        self.ignore_modules = set(ignore_modules or ())
        self._chooses_dtype = dtype is None and not mode.startswith("int8")

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the result is computed."""
        if self._chooses_dtype:
            # Not in __init__: asking the GPU makes it impossible to fork the process.
            has_bfloat16 = torch.cuda.device_count() == 0 or torch.cuda.is_bf16_supported(including_emulation=False)
            self._dtype = torch.bfloat16 if has_bfloat16 else torch.float16
            self._chooses_dtype = False
        return self._dtype

    def convert_module(self, module: Module) -> Module:
        """The module with its linear layers quantized, unless some are already; those that share a weight stay.

        Raises:
            ArgumentTypeError: If it has no linear layer: nothing would be quantized.
        """
        if not any(isinstance(layer, Linear) for layer in module.modules()):
            raise ArgumentTypeError(
                f"BitsandbytesPrecision({self.mode!r}) was given a {class_name(module)} without linear layers. Only"
                " the weights of `torch.nn.Linear` are quantized. Use another precision for this module."
            )
        module = super().convert_module(module)
        if not any(_is_quantizing(layer) for layer in module.modules()):
            module = exchange_layers(module, self._quantized, is_kept=self._is_ignored)
            if not any(_is_quantizing(layer) for layer in module.modules()):
                rank_zero_warn(
                    f"BitsandbytesPrecision({self.mode!r}) quantizes nothing in this {class_name(module)}: each of"
                    " its linear layers is ignored, of a class of its own, or shares its weight with another layer."
                )
        quantizing: list[Any] = [layer for layer in module.modules() if _is_quantizing(layer)]
        for layer in quantizing:
            if hasattr(layer, "compute_dtype"):  # 4 bits; the user's own may have none
                layer.compute_dtype, layer.compute_type_is_set = self.dtype, True
        return module

    def beside_parameters(self, module: Module) -> list[Tensor]:
        """The scales of quantized weights."""
        layers: list[Any] = [layer for layer in module.modules() if _is_quantizing(layer)]
        return [scale for layer in layers for scale in _scales(layer)]

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Modules created inside are in the type, with quantized linear layers.

        Raises:
            ConfigurationError: If there are modules to ignore: a layer does not know its full name while it is made.
        """
        if self.ignore_modules:
            raise ConfigurationError(
                f"BitsandbytesPrecision(ignore_modules={self.ignore_modules!r}) cannot make a module with quantized"
                " layers. The full name of a layer is known only when the whole module is there. Make the module"
                " outside of `init_module()`, or leave out ignore_modules."
            )
        return self._quantizing_as_made()

    @contextmanager
    def _quantizing_as_made(self) -> Iterator[None]:
        with super().module_init_context(), exchanging_layers(self._quantized):
            yield

    def _is_ignored(self, full_name: str) -> bool:
        return any(full_name.startswith(prefix) for prefix in self.ignore_modules)

    def _quantized(self, layer: Module) -> Module | None:
        # Subclasses have a forward of their own, or parents that read their weight.
        if type(layer) is not Linear:
            return None
        bnb: Any = require("bitsandbytes", purpose=f"BitsandbytesPrecision({self.mode!r})")
        sizes = (layer.in_features, layer.out_features, False)
        # The initial values of the new layer are dropped at once.
        with torch.device("meta"):
            if self.mode.startswith("int8"):
                trains = self.mode == "int8-training"
                quantized = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=trains, threshold=_OUTLIER_THRESHOLD)
            else:
                kind, _, double = self.mode.partition("-")
                quantized = bnb.nn.Linear4bit(
                    *sizes, compute_dtype=self.dtype, compress_statistics=bool(double), quant_type=kind
                )
                # On CPUs with AVX-512 bitsandbytes 0.50 packs weights anew to evaluate. It does so in place, fails for
                # some sizes, and then gives no gradients in training.
                quantized.support_avx512bf16_for_cpu = False
        quantized.bias = layer.bias
        if self.mode == "int8-training":
            quantized.weight = _as_int8_params(layer.weight, bnb.nn.Int8Params)
            quantized.forward = partial(_forward_trained, quantized)
            quantized.register_forward_pre_hook(_forget_quantized)
        else:
            _give_weight(quantized, layer.weight.data)
            quantized.register_load_state_dict_pre_hook(_load_weight)
            quantized.register_forward_pre_hook(_quantize_when_due)
        return quantized  # type: ignore[no-any-return]


def _is_quantizing(layer: Module) -> bool:
    return isinstance(layer, Linear) and type(layer).__module__.startswith("bitsandbytes.")


def _scales(layer: Any) -> list[Tensor]:
    if not hasattr(layer, "compute_dtype"):
        if layer.weight.dtype.is_floating_point:
            return []  # it trains: forward quantizes it anew
        found = (getattr(layer.weight, "SCB", None), layer.state.SCB)
    elif (state := getattr(layer.weight, "quant_state", None)) is None:
        return []
    else:
        found = (state.absmax, *((state.offset, state.state2.absmax) if state.nested else ()))
    return [scale for scale in found if scale is not None]


def _as_int8_params(weight: Tensor, kind: Any) -> Tensor:
    """The same object, for an optimizer that was made before knows it, as a parameter of this kind."""
    try:
        torch.utils.swap_tensors(weight, kind(weight.data, weight.requires_grad, has_fp16_weights=True))
    except RuntimeError as error:
        raise ConfigurationError(
            "BitsandbytesPrecision('int8-training') cannot convert a module whose parameters are in use. Something"
            " still refers to the graph of a forward or backward that was run before. Set the module up first, or"
            " delete what that run returned."
        ) from error
    return weight


def _give_weight(layer: Any, weight: Tensor) -> None:
    """Give `weight` to a layer that does not train; quantize it, unless a GPU will do that faster when it gets it."""
    kind = type(layer.weight)
    if hasattr(layer, "compute_dtype"):
        old = layer.weight
        layer.weight = kind(
            weight,
            False,
            compress_statistics=old.compress_statistics,
            quant_type=old.quant_type,
            blocksize=old.blocksize,
        )
        layer.quant_state = None
    else:
        layer.weight = kind(weight, False, has_fp16_weights=False)
        layer.state.CB = layer.state.SCB = None
    is_on_the_way = weight.device.type == "cpu" and torch.cuda.device_count() > 0
    if not is_on_the_way and weight.device.type != "meta":
        _quantize(layer)


def _quantize(layer: Any) -> None:
    functional: Any = require("bitsandbytes.functional", purpose="BitsandbytesPrecision")
    old, kind = layer.weight, type(layer.weight)
    if hasattr(layer, "compute_dtype"):
        data, state = functional.quantize_4bit(
            old.data.contiguous(),
            blocksize=old.blocksize,
            compress_statistics=old.compress_statistics,
            quant_type=old.quant_type,
        )
        _give_quantized_4bit(layer, data, state)
    else:
        data, scales, _ = functional.int8_vectorwise_quant(old.data.contiguous().to(torch.float16))
        layer.weight = kind(data, False, has_fp16_weights=False, CB=data, SCB=scales)


def _give_quantized_4bit(layer: Any, data: Tensor, state: Any) -> None:
    layer.weight = type(layer.weight)(
        data,
        False,
        quant_state=state,
        blocksize=state.blocksize,
        compress_statistics=state.nested,
        quant_type=state.quant_type,
        bnb_quantized=True,
    )
    layer.quant_state = state


def _quantize_when_due(layer: Any, _: Any) -> None:
    # A hook on forward, so that `nn.TransformerEncoderLayer` does not take its fast path, which reads weights itself.
    if layer.weight.dtype.is_floating_point:
        _quantize(layer)


def _forget_quantized(layer: Any, _: Any) -> None:
    # Else bitsandbytes 0.50 evaluates with the weight as it was before the last step, and trains with it too if
    # gradients are zeroed and not dropped. Without, it quantizes the weight anew.
    layer.state.CB = None


def _forward_trained(layer: Any, rows: Tensor) -> Tensor:
    """Forward of a layer whose 8-bit weights train; in place of bitsandbytes' own.

    On the CPU that of version 0.50 cannot evaluate, nor go backward through more than two axes.
    """
    bnb: Any = require("bitsandbytes", purpose="BitsandbytesPrecision('int8-training')")
    layer.state.is_training = layer.training or rows.device.type == "cpu"
    bias = None if layer.bias is None else layer.bias.to(rows.dtype)
    flat = rows.reshape(-1, rows.shape[-1])
    output: Tensor = bnb.matmul(flat, layer.weight, bias=bias, state=layer.state)
    return output.reshape(*rows.shape[:-1], output.shape[-1])


def _load_weight(layer: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a layer that does not train is loaded: take a weight of full precision, or one that is quantized.

    What was taken is left in `state_dict` as the layer's own parameter, and the details of quantized ones are taken
    out, so that torch finds exactly what it expects.
    """
    name = f"{prefix}weight"
    if name not in state_dict:
        return
    loaded = state_dict[name].detach()
    where = layer.weight.device if layer.weight.device.type != "meta" else loaded.device
    # Cloned: the caller may go on with his tensors.
    weight = loaded.to(where, copy=True)
    is_4bit = hasattr(layer, "compute_dtype")
    if loaded.dtype.is_floating_point:
        _give_weight(layer, weight.to(layer.compute_dtype) if is_4bit else weight)
    elif is_4bit:
        details = {key: state_dict.pop(key) for key in list(state_dict) if key.startswith(f"{name}.")}
        if not any(key.startswith(f"{name}.{_QUANTIZED}") for key in details):
            return  # torch says what does not fit
        functional: Any = require("bitsandbytes.functional", purpose="BitsandbytesPrecision")
        copies = {key: value.detach().clone() for key, value in details.items()}
        _give_quantized_4bit(layer, weight, functional.QuantState.from_dict(copies, device=where))
    else:
        scales = state_dict.pop(f"{prefix}SCB", None)
        state_dict.pop(f"{prefix}weight_format", None)
        if scales is None:
            return
        scales = scales.detach().to(where, copy=True)
        layer.weight = type(layer.weight)(weight, False, has_fp16_weights=False, CB=weight, SCB=scales)
        layer.state.CB = layer.state.SCB = None
    state_dict[name] = layer.weight
