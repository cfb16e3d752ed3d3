"""Face: summaries of models."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.trainer.summary.deepspeed import DeepSpeedLayerSummary as DeepSpeedLayerSummary
    from fulmen.trainer.summary.deepspeed import DeepSpeedSummary as DeepSpeedSummary
    from fulmen.trainer.summary.deepspeed import deepspeed_param_size as deepspeed_param_size
    from fulmen.trainer.summary.layers import LEFTOVER_PARAMS_NAME as LEFTOVER_PARAMS_NAME
    from fulmen.trainer.summary.layers import NOT_APPLICABLE as NOT_APPLICABLE
    from fulmen.trainer.summary.layers import UNKNOWN_SIZE as UNKNOWN_SIZE
    from fulmen.trainer.summary.layers import LayerSummary as LayerSummary
    from fulmen.trainer.summary.layers import ModelSummary as ModelSummary
    from fulmen.trainer.summary.layers import parse_batch_shape as parse_batch_shape
    from fulmen.trainer.summary.layers import summarize as summarize
    from fulmen.trainer.summary.sizes import warning_cache as warning_cache
    from fulmen.trainer.summary.table import PARAMETER_NUM_UNITS as PARAMETER_NUM_UNITS
    from fulmen.trainer.summary.table import get_formatted_model_size as get_formatted_model_size
    from fulmen.trainer.summary.table import get_human_readable_count as get_human_readable_count

_LAYERS, _TABLE = "fulmen.trainer.summary.layers", "fulmen.trainer.summary.table"
_SIZES, _DEEPSPEED = "fulmen.trainer.summary.sizes", "fulmen.trainer.summary.deepspeed"

__all__ = [
    "ModelSummary",
    "LayerSummary",
    "DeepSpeedSummary",
    "DeepSpeedLayerSummary",
    "summarize",
    "deepspeed_param_size",
    "parse_batch_shape",
    "get_human_readable_count",
    "get_formatted_model_size",
    "LEFTOVER_PARAMS_NAME",
    "NOT_APPLICABLE",
    "PARAMETER_NUM_UNITS",
    "UNKNOWN_SIZE",
    "warning_cache",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "ModelSummary": _LAYERS,
        "LayerSummary": _LAYERS,
        "DeepSpeedSummary": _DEEPSPEED,
        "DeepSpeedLayerSummary": _DEEPSPEED,
        "deepspeed_param_size": _DEEPSPEED,
        "summarize": _LAYERS,
        "parse_batch_shape": _LAYERS,
        "get_human_readable_count": _TABLE,
        "get_formatted_model_size": _TABLE,
        "LEFTOVER_PARAMS_NAME": _LAYERS,
        "NOT_APPLICABLE": _LAYERS,
        "PARAMETER_NUM_UNITS": _TABLE,
        "UNKNOWN_SIZE": _LAYERS,
        "warning_cache": _SIZES,
    },
)
