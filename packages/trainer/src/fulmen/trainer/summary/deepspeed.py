"""The layers of a model whose parameters DeepSpeed has split, with what each process holds of them."""

from typing import Any

from torch.nn import Parameter

from fulmen.trainer.summary.layers import LEFTOVER_PARAMS_NAME, NOT_APPLICABLE, LayerSummary, ModelSummary
from fulmen.trainer.summary.table import get_human_readable_count

_TITLE = "Params per Device"


def deepspeed_param_size(p: Parameter) -> int:
    """How many numbers a split parameter stands for, on all processes together."""
    split: Any = p
    return int(split.ds_numel)


class DeepSpeedLayerSummary(LayerSummary):
    """One layer; its parameters are split."""

    @property
    def average_shard_parameters(self) -> int:
        """How many numbers each process holds; those of parameters that are not split, whole."""
        return sum(map(_numbers_here, self._module.parameters()))


class DeepSpeedSummary(ModelSummary):
    """The layers of a model that is split by DeepSpeed; with one column more, of what each process holds.

    Args:
        model: The module.
        max_depth: How many levels of layers inside layers; -1 for all, 0 for totals only.

    Raises:
        ConfigurationError: For a depth below -1.
    """

    layer_class = DeepSpeedLayerSummary

    @property
    def parameters_per_layer(self) -> list[int]:
        """How many numbers of each layer a process holds."""
        return [
            layer.average_shard_parameters
            for layer in self._layer_summary.values()
            if isinstance(layer, DeepSpeedLayerSummary)
        ]

    def columns(self) -> list[tuple[str, list[str]]]:
        """The table of layers: columns, each with its title and one text per layer."""
        columns = super().columns()
        cells = [get_human_readable_count(number) for number in self.parameters_per_layer]
        if LEFTOVER_PARAMS_NAME in dict(columns)["Name"]:
            cells.append(NOT_APPLICABLE)
        titles = [title for title, _ in columns]
        columns.insert(titles.index("Params") + 1, (_TITLE, cells))
        return columns


def _numbers_here(parameter: Any) -> int:
    return int(parameter.partition_numel()) if hasattr(parameter, "ds_numel") else int(parameter.numel())
