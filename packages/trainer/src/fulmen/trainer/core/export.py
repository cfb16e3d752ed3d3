"""A module for other programs: ONNX, TorchScript and TensorRT.

Every export looks at the module in evaluation mode and without gradients, and leaves it as it was.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.filesystem import atomic_open, is_local, local_path
from fulmen.fabric.optional_packages import require
from fulmen.fabric.trees import move_data_to_device
from fulmen.trainer.core.needs import ATTACHMENTS

# torch.jit looks at all attributes of a module, also at those that only a run has.
_scripting: ContextVar[bool] = ContextVar("scripting", default=False)

PathOrBuffer = str | Path | io.BytesIO


class Exports(nn.Module):
    """What a module needs to leave Python: an example of its input, and the formats it can be written in."""

    _example_input_array: Any = None

    @property
    def example_input_array(self) -> Any:
        """Input for `forward`, from which summaries, graphs and exports are made: a tensor, a tuple or a dict."""
        return self._example_input_array

    @example_input_array.setter
    def example_input_array(self, example: torch.Tensor | tuple[Any, ...] | dict[str, Any] | None) -> None:
        self.__dict__["_example_input_array"] = example

    @property
    def _is_scripted(self) -> bool:
        return _scripting.get()

    def to_onnx(self, file_path: PathOrBuffer | None = None, input_sample: Any | None = None, **kwargs: Any) -> Any:
        """The module as ONNX.

        Args:
            file_path: Where to write it, or a buffer; None writes nothing.
            input_sample: Input for `forward`: a tensor, a tuple, or a dict of keywords; None: `example_input_array`.
            kwargs: For `torch.onnx.export`.

        Returns:
            torch's `ONNXProgram`; None with `dynamo=False`, which needs a `file_path`.

        Raises:
            ConfigurationError: If there is no input to trace with.
            MissingPackageError: If the packages onnx or onnxscript are not installed.
        """
        return _to_onnx(self, file_path, input_sample, kwargs)

    def to_torchscript(
        self,
        file_path: str | Path | None = None,
        method: str | None = "script",
        example_inputs: Any | None = None,
        **kwargs: Any,
    ) -> torch.jit.ScriptModule | dict[str, torch.jit.ScriptModule]:
        """The module as TorchScript; override it to make several, as a dict of names.

        Args:
            file_path: Where to write it, local or remote; None writes nothing.
            method: "script" reads the code of `forward`, "trace" runs it once and keeps what happened.
            example_inputs: What to trace with; None: `example_input_array`.
            kwargs: For `torch.jit.script` or `torch.jit.trace`.

        Raises:
            ConfigurationError: For any other method, and for tracing without an input.
        """
        return _to_torchscript(self, file_path, method, example_inputs, kwargs)

    def to_tensorrt(
        self,
        file_path: PathOrBuffer | None = None,
        input_sample: Any | None = None,
        ir: str = "default",
        output_format: str = "exported_program",
        retrace: bool = False,
        default_device: str | torch.device = "cuda",
        **compile_kwargs: Any,
    ) -> Any:
        """The module compiled for TensorRT.

        Args:
            file_path: Where to write it, or a buffer; None writes nothing.
            input_sample: Input for `forward`; None: `example_input_array`.
            ir: How torch_tensorrt reads the module: "default", "dynamo" or "ts".
            output_format: What is written: "exported_program" or "torchscript".
            retrace: Export once more before writing, so that shapes stay dynamic?
            default_device: Where to compile, if the module is not on a GPU.
            compile_kwargs: For `torch_tensorrt.compile`.

        Raises:
            ConfigurationError: For unknown words, and without an input.
            MissingPackageError: If torch_tensorrt is not installed.
        """
        choices = {"ir": (ir, ("default", "dynamo", "ts")), "output_format": (output_format, _TENSORRT_FORMATS)}
        for name, (value, known) in choices.items():
            if value not in known:
                raise ConfigurationError(
                    f"to_tensorrt({name}={value!r}) is unknown. torch_tensorrt knows other words."
                    f" Pass one of {', '.join(map(repr, known))}."
                )
        if ir == "ts" and output_format != "torchscript":
            raise ConfigurationError(
                f"to_tensorrt(ir='ts', output_format={output_format!r}) contradicts itself. What is read as"
                " TorchScript can be written as TorchScript only. Pass output_format='torchscript', or another ir."
            )
        return _to_tensorrt(self, file_path, input_sample, ir, output_format, retrace, default_device, compile_kwargs)


_TENSORRT_FORMATS = ("exported_program", "torchscript")


def _to_onnx(module: Exports, file_path: PathOrBuffer | None, sample: Any, options: dict[str, Any]) -> Any:
    dynamo = options.get("dynamo", True)
    for package in ("onnx", "onnxscript") if dynamo else ("onnx",):
        require(package, purpose=f"{type(module).__qualname__}.to_onnx()")
    args, keywords = _inputs(module, sample, "to_onnx(input_sample=...)")
    if file_path is None and not dynamo:
        raise ConfigurationError(
            "to_onnx(dynamo=False) was given no file_path. That exporter writes a file and returns nothing."
            " Pass file_path, or leave out dynamo=False and take the program that is returned."
        )
    target: Any = file_path
    if isinstance(file_path, str | Path):
        target = _local_target(file_path, "to_onnx")
    with _evaluating(module), torch.no_grad():
        if isinstance(target, io.BytesIO) and dynamo:  # that exporter knows paths only
            program = torch.onnx.export(module, args, None, kwargs=keywords, **options)
            assert program is not None
            target.write(program.model_proto.SerializeToString())
            return program
        return torch.onnx.export(module, args, target, kwargs=keywords, **options)


def _to_torchscript(
    module: Exports, file_path: str | Path | None, method: str | None, sample: Any, options: dict[str, Any]
) -> torch.jit.ScriptModule:
    if method not in ("script", "trace"):
        raise ConfigurationError(
            f"to_torchscript(method={method!r}) is unknown. TorchScript is made from the code of forward, or from one"
            " run of it. Pass 'script' or 'trace'."
        )
    with _evaluating(module), _seen_by_jit(module), torch.no_grad():
        script: Any
        if method == "script":
            script = torch.jit.script(module, **options)
        else:
            args, keywords = _inputs(module, sample, "to_torchscript(method='trace', example_inputs=...)")
            inputs = {"example_kwarg_inputs": keywords} if keywords else {"example_inputs": args}
            script = torch.jit.trace(module, **inputs, **options)
    if file_path is not None:
        with atomic_open(file_path, "wb") as file:
            torch.jit.save(script, file)
    return script  # type: ignore[no-any-return]  # torch.jit is untyped


def _to_tensorrt(
    module: Exports,
    file_path: PathOrBuffer | None,
    sample: Any,
    ir: str,
    output_format: str,
    retrace: bool,
    default_device: str | torch.device,
    options: dict[str, Any],
) -> Any:
    tensorrt: Any = require(
        "torch_tensorrt", purpose=f"{type(module).__qualname__}.to_tensorrt()", pip="torch-tensorrt"
    )
    home = _home(module)
    target = home if home.type == "cuda" else torch.device(default_device)
    if target.type != "cuda" or not torch.cuda.is_available():
        raise ConfigurationError(
            f"to_tensorrt(default_device={str(default_device)!r}) has no GPU to compile on. TensorRT compiles for the"
            " GPU that it runs on. Call it on a machine with an NVIDIA GPU, and pass default_device='cuda'."
        )
    module.to(target)
    try:
        args, keywords = _inputs(module, sample, "to_tensorrt(input_sample=...)", device=target)
        given = {"arg_inputs" if ir == "dynamo" else "inputs": list(args)}
        if keywords:
            given["kwarg_inputs"] = keywords  # type: ignore[assignment]  # the one dict among lists
        with _evaluating(module), torch.no_grad():
            compiled = tensorrt.compile(module, ir=ir, **given, **options)
        if file_path is not None:
            place = _local_target(file_path, "to_tensorrt") if isinstance(file_path, str | Path) else file_path
            if ir == "ts":
                torch.jit.save(compiled, place)
            else:
                tensorrt.save(compiled, place, output_format=output_format, retrace=retrace, inputs=list(args))
    finally:
        module.to(home)
    return compiled


def _inputs(
    module: Exports, sample: Any, argument: str, device: torch.device | None = None
) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
    """Positional and keyword arguments of `forward`, where the module is."""
    if sample is None:
        sample = module.example_input_array
    if sample is None:
        name = type(module).__qualname__
        raise ConfigurationError(
            f"{name}.{argument} was left out, and {name}.example_input_array is None."
            " The module is run once to see what it computes. Pass an input, or set example_input_array."
        )
    sample = move_data_to_device(sample, device or _home(module))
    if isinstance(sample, dict):
        return (), sample
    return (tuple(sample) if isinstance(sample, tuple) else (sample,)), None


def _home(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in module.parameters()), torch.device("cpu"))


def _local_target(path: str | Path, method: str) -> str:
    if not is_local(path):
        raise ConfigurationError(
            f"{method}(file_path={os.fspath(path)!r}) is a remote path. The exporter may write several files side by"
            " side, which only a local folder holds. Pass a local path and upload what is there."
        )
    text = local_path(path)
    os.makedirs(os.path.dirname(text) or ".", exist_ok=True)
    return text


@contextmanager
def _seen_by_jit(module: nn.Module) -> Iterator[None]:
    """Hides from torch.jit what it would try to compile: whatever ties the module to a run."""
    hidden: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for part in module.modules():
        if isinstance(part, Exports):
            state = part.__dict__
            hidden.append((state, {name: state.pop(name) for name in ATTACHMENTS if name in state}))
    token = _scripting.set(True)
    try:
        yield
    finally:
        _scripting.reset(token)
        for state, attachments in hidden:
            state.update(attachments)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each part is in the mode in which it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
