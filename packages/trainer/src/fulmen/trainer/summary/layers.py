"""The layers of a model: names, types, parameters, modes, and sizes if there is an example input."""

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import nn

from fulmen.fabric.class_names import class_name
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.seeding import isolate_rng
from fulmen.fabric.trees import move_to_device
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.summary.sizes import num_bytes_of, num_numbers, num_parameters
from fulmen.trainer.summary.table import format_summary, get_human_readable_count

UNKNOWN_SIZE = "?"
LEFTOVER_PARAMS_NAME = "other params"
NOT_APPLICABLE = "n/a"


class LayerSummary:
    """One layer. Its sizes are known once it has been called."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._in_size: str | list[Any] | None = None
        self._out_size: str | list[Any] | None = None
        self._hook: Any = None
        # Compiled TorchScript takes no hooks.
        if not isinstance(module, torch.jit.ScriptModule):
            this = weakref.ref(self)

            def note_sizes(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                # Not the bound method: the module would keep this object, and so the hook, for ever.
                layer = this()
                if layer is not None:
                    layer._note_sizes(args, output)

            self._hook = module.register_forward_hook(note_sizes)

    def __del__(self) -> None:
        """The hook must not outlive this."""
        self.detach_hook()

    def _note_sizes(self, args: tuple[Any, ...], output: Any) -> None:
        self._in_size = parse_batch_shape(args[0] if len(args) == 1 else args)
        self._out_size = parse_batch_shape(output)
        self.detach_hook()

    def detach_hook(self) -> None:
        """No longer watch calls."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @property
    def in_size(self) -> str | list[Any]:
        """The shape of the input, or of each; "?" if it is not known."""
        return UNKNOWN_SIZE if self._in_size is None else self._in_size

    @property
    def out_size(self) -> str | list[Any]:
        """The shape of the output, or of each; "?" if it is not known."""
        return UNKNOWN_SIZE if self._out_size is None else self._out_size

    @property
    def layer_type(self) -> str:
        """The name of the class."""
        return class_name(self._module)

    @property
    def num_parameters(self) -> int:
        """How many numbers; those of lazy layers do not count before the first call."""
        return num_parameters(self._module)

    @property
    def training(self) -> bool:
        """Is the layer in training mode?"""
        return self._module.training


class ModelSummary:
    """The layers of `model`, and totals.

    If the module has an `example_input_array`, it is called once with it, in evaluation mode and without gradients, to
    learn sizes and FLOPs. Random numbers after that are as if it had not been called.

    Args:
        model: The module.
        max_depth: How many levels of layers inside layers; -1 for all, 0 for totals only.

    Raises:
        ConfigurationError: For a depth below -1.
    """

    layer_class: ClassVar[type[LayerSummary]] = LayerSummary

    def __init__(self, model: LightningModule, max_depth: int = 1) -> None:
        check_max_depth(max_depth)
        self._model = model
        self._max_depth = max_depth
        self._flop_counts: dict[str, dict[Any, int]] = {}
        self._layer_summary = self.summarize()

    def summarize(self) -> dict[str, LayerSummary]:
        """Layer by layer: name to summary."""
        layers = {name: self.layer_class(module) for name, module in self.named_modules}
        if self._model.example_input_array is not None:
            self._call_with_example()
        for layer in layers.values():
            layer.detach_hook()
        if self._max_depth >= 1:
            # All were watched, so that a layer shows up whose parents are called by other ways than forward.
            return {name: layer for name, layer in layers.items() if name.count(".") < self._max_depth}
        return layers

    @property
    def named_modules(self) -> list[tuple[str, nn.Module]]:
        """The layers that are looked at, without the model itself."""
        if self._max_depth == 0:
            return []
        if self._max_depth == 1:
            return list(self._model.named_children())
        return [(name, module) for name, module in self._model.named_modules() if name]

    @property
    def layer_names(self) -> list[str]:
        """Names, as attributes of the model."""
        return list(self._layer_summary)

    @property
    def layer_types(self) -> list[str]:
        """Names of their classes."""
        return [layer.layer_type for layer in self._layer_summary.values()]

    @property
    def in_sizes(self) -> list[Any]:
        """Shapes of their inputs."""
        return [layer.in_size for layer in self._layer_summary.values()]

    @property
    def out_sizes(self) -> list[Any]:
        """Shapes of their outputs."""
        return [layer.out_size for layer in self._layer_summary.values()]

    @property
    def param_nums(self) -> list[int]:
        """How many numbers each has."""
        return [layer.num_parameters for layer in self._layer_summary.values()]

    @property
    def training_modes(self) -> list[bool]:
        """Is each in training mode?"""
        return [layer.training for layer in self._layer_summary.values()]

    @property
    def total_training_modes(self) -> dict[str, int]:
        """How many modules inside the model are in mode "train" and in mode "eval"."""
        modes = [module.training for module in self._model.modules()][1:]  # without the model itself
        return {"train": modes.count(True), "eval": modes.count(False)}

    @property
    def total_parameters(self) -> int:
        """How many numbers the model has; shared ones count once."""
        return num_parameters(self._model)

    @property
    def trainable_parameters(self) -> int:
        """How many of them need gradients."""
        return sum(num_numbers(parameter) for parameter in self._model.parameters() if parameter.requires_grad)

    @property
    def total_layer_params(self) -> int:
        """The numbers of all listed layers together; layers inside listed layers count again."""
        return sum(self.param_nums)

    @property
    def model_size(self) -> float:
        """Of all parameters, in megabytes, as they are held: two bytes for a half, what is packed as it is packed."""
        return num_bytes_of(self._model) / 1e6

    @property
    def flop_counts(self) -> dict[str, dict[Any, int]]:
        """Per module, the floating point operations of one forward pass of the example, by kind of operation."""
        return self._flop_counts

    @property
    def total_flops(self) -> int:
        """Of one forward pass of the example; 0 without one."""
        return sum(self._flop_counts.get("Global", {}).values())

    def columns(self) -> list[tuple[str, list[str]]]:
        """The table of layers: columns, each with its title and one text per layer."""
        has_example = self._model.example_input_array is not None
        modes = ["train" if training else "eval" for training in self.training_modes]
        columns = [
            (" ", [str(number) for number in range(len(self._layer_summary))]),
            ("Name", self.layer_names),
            ("Type", self.layer_types),
            ("Params", [get_human_readable_count(number) for number in self.param_nums]),
            ("Mode", modes),
        ]
        if has_example:
            flops = [sum(self._flops_of(name).values()) for name in self._layer_summary]
            columns += [
                ("FLOPs", [get_human_readable_count(number) for number in flops]),
                ("In sizes", [str(size) for size in self.in_sizes]),
                ("Out sizes", [str(size) for size in self.out_sizes]),
            ]
        leftover = self._num_leftover()
        if leftover > 0:
            known = {"Name": LEFTOVER_PARAMS_NAME, "Params": get_human_readable_count(leftover), " ": " "}
            columns = [(title, [*cells, known.get(title, NOT_APPLICABLE)]) for title, cells in columns]
        return columns

    def __str__(self) -> str:
        """The table with totals."""
        return format_summary(
            self.total_parameters,
            self.trainable_parameters,
            self.model_size,
            self.total_training_modes,
            self.total_flops,
            *self.columns(),
        )

    __repr__ = __str__

    def _num_leftover(self) -> int:
        """How many numbers lie in no listed layer: parameters of the model itself, and of parents left out."""
        if self._max_depth == 0:
            return 0
        listed = {id(p) for _, module in self._model.named_children() for p in module.parameters()}
        return sum(0 if id(p) in listed else num_numbers(p) for p in self._model.parameters())

    def _flops_of(self, name: str) -> dict[Any, int]:
        return self._flop_counts.get(f"{type(self._model).__name__}.{name}", {})

    def _call_with_example(self) -> None:
        from fulmen.trainer.summary.flops import count_flops

        model, example = self._model, move_to_device(self._model.example_input_array, self._model.device)
        trainer = model._trainer
        precision: Any = trainer.strategy.precision_plugin if trainer is not None else None
        if precision is not None:
            example = precision.convert_input(example)
        forward_context = precision.forward_context() if precision is not None else contextlib.nullcontext()
        with isolate_rng(), _evaluating(model), torch.no_grad(), forward_context, count_flops(model) as counted:
            if isinstance(example, tuple):
                model(*example)
            elif isinstance(example, dict):
                model(**example)
            else:
                model(example)
        self._flop_counts = counted()


def summarize(lightning_module: LightningModule, max_depth: int = 1) -> ModelSummary:
    """The summary of a module; print it."""
    return ModelSummary(lightning_module, max_depth=max_depth)


def check_max_depth(max_depth: int) -> None:
    """Refuse a depth that is none.

    Raises:
        ConfigurationError: For anything but an int of at least -1.
    """
    if not isinstance(max_depth, int) or max_depth < -1:
        raise ConfigurationError(
            f"ModelSummary(max_depth={max_depth!r}) is no depth. Levels are counted from 0, and -1 stands for all."
            " Pass -1 or more."
        )


def parse_batch_shape(batch: Any) -> str | list[Any]:
    """The shape of a tensor as a list; a list of them for a list or tuple; "?" for anything else."""
    if hasattr(batch, "shape"):
        return list(batch.shape)
    if isinstance(batch, list | tuple):
        return [parse_batch_shape(part) for part in batch]
    return UNKNOWN_SIZE


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module is in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
