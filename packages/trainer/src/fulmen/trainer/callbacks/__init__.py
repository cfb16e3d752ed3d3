"""Face: callbacks."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.trainer.callbacks.checkpoint import Checkpoint as Checkpoint
    from fulmen.trainer.callbacks.device_stats import DeviceStatsMonitor as DeviceStatsMonitor
    from fulmen.trainer.callbacks.early_stopping import EarlyStopping as EarlyStopping
    from fulmen.trainer.callbacks.early_stopping import EarlyStoppingReason as EarlyStoppingReason
    from fulmen.trainer.callbacks.finetuning import BackboneFinetuning as BackboneFinetuning
    from fulmen.trainer.callbacks.finetuning import BaseFinetuning as BaseFinetuning
    from fulmen.trainer.callbacks.gradient_accumulation import (
        GradientAccumulationScheduler as GradientAccumulationScheduler,
    )
    from fulmen.trainer.callbacks.lambda_callback import LambdaCallback as LambdaCallback
    from fulmen.trainer.callbacks.lr_monitor import LearningRateMonitor as LearningRateMonitor
    from fulmen.trainer.callbacks.model_checkpoint import ModelCheckpoint as ModelCheckpoint
    from fulmen.trainer.callbacks.model_summary import ModelSummary as ModelSummary
    from fulmen.trainer.callbacks.monitored import MetricNotLoggedError as MetricNotLoggedError
    from fulmen.trainer.callbacks.on_exception_checkpoint import OnExceptionCheckpoint as OnExceptionCheckpoint
    from fulmen.trainer.callbacks.prediction_writer import BasePredictionWriter as BasePredictionWriter
    from fulmen.trainer.callbacks.progress_bar import ProgressBar as ProgressBar
    from fulmen.trainer.callbacks.progress_bar import get_standard_metrics as get_standard_metrics
    from fulmen.trainer.callbacks.pruning import ModelPruning as ModelPruning
    from fulmen.trainer.callbacks.rich_columns import BatchesProcessedColumn as BatchesProcessedColumn
    from fulmen.trainer.callbacks.rich_columns import CustomBarColumn as CustomBarColumn
    from fulmen.trainer.callbacks.rich_columns import CustomInfiniteTask as CustomInfiniteTask
    from fulmen.trainer.callbacks.rich_columns import CustomProgress as CustomProgress
    from fulmen.trainer.callbacks.rich_columns import CustomTimeColumn as CustomTimeColumn
    from fulmen.trainer.callbacks.rich_columns import MetricsTextColumn as MetricsTextColumn
    from fulmen.trainer.callbacks.rich_columns import ProcessingSpeedColumn as ProcessingSpeedColumn
    from fulmen.trainer.callbacks.rich_model_summary import RichModelSummary as RichModelSummary
    from fulmen.trainer.callbacks.rich_progress_bar import RichProgressBar as RichProgressBar
    from fulmen.trainer.callbacks.rich_theme import RichProgressBarTheme as RichProgressBarTheme
    from fulmen.trainer.callbacks.spike import SpikeDetection as SpikeDetection
    from fulmen.trainer.callbacks.stochastic_weight_averaging import (
        StochasticWeightAveraging as StochasticWeightAveraging,
    )
    from fulmen.trainer.callbacks.throughput import ThroughputMonitor as ThroughputMonitor
    from fulmen.trainer.callbacks.timer import Interval as Interval
    from fulmen.trainer.callbacks.timer import Timer as Timer
    from fulmen.trainer.callbacks.tqdm_bar import Tqdm as Tqdm
    from fulmen.trainer.callbacks.tqdm_bar import convert_inf as convert_inf
    from fulmen.trainer.callbacks.tqdm_progress_bar import TQDMProgressBar as TQDMProgressBar
    from fulmen.trainer.callbacks.weight_averaging import EMAWeightAveraging as EMAWeightAveraging
    from fulmen.trainer.callbacks.weight_averaging import WeightAveraging as WeightAveraging
    from fulmen.trainer.core.callback import Callback as Callback
    from fulmen.trainer.core.writes_predictions import WriteInterval as WriteInterval

__all__ = [
    "BackboneFinetuning",
    "BaseFinetuning",
    "BasePredictionWriter",
    "BatchesProcessedColumn",
    "Callback",
    "Checkpoint",
    "CustomBarColumn",
    "CustomInfiniteTask",
    "CustomProgress",
    "CustomTimeColumn",
    "DeviceStatsMonitor",
    "EMAWeightAveraging",
    "EarlyStopping",
    "EarlyStoppingReason",
    "GradientAccumulationScheduler",
    "Interval",
    "LambdaCallback",
    "LearningRateMonitor",
    "MetricNotLoggedError",
    "MetricsTextColumn",
    "ModelCheckpoint",
    "ModelPruning",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "ProcessingSpeedColumn",
    "ProgressBar",
    "RichModelSummary",
    "RichProgressBar",
    "RichProgressBarTheme",
    "SpikeDetection",
    "StochasticWeightAveraging",
    "TQDMProgressBar",
    "ThroughputMonitor",
    "Timer",
    "Tqdm",
    "WeightAveraging",
    "WriteInterval",
    "convert_inf",
    "get_standard_metrics",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "BackboneFinetuning": "fulmen.trainer.callbacks.finetuning",
        "BaseFinetuning": "fulmen.trainer.callbacks.finetuning",
        "BasePredictionWriter": "fulmen.trainer.callbacks.prediction_writer",
        "BatchesProcessedColumn": "fulmen.trainer.callbacks.rich_columns",
        "Callback": "fulmen.trainer.core.callback",
        "Checkpoint": "fulmen.trainer.callbacks.checkpoint",
        "CustomBarColumn": "fulmen.trainer.callbacks.rich_columns",
        "CustomInfiniteTask": "fulmen.trainer.callbacks.rich_columns",
        "CustomProgress": "fulmen.trainer.callbacks.rich_columns",
        "CustomTimeColumn": "fulmen.trainer.callbacks.rich_columns",
        "DeviceStatsMonitor": "fulmen.trainer.callbacks.device_stats",
        "EMAWeightAveraging": "fulmen.trainer.callbacks.weight_averaging",
        "EarlyStopping": "fulmen.trainer.callbacks.early_stopping",
        "EarlyStoppingReason": "fulmen.trainer.callbacks.early_stopping",
        "GradientAccumulationScheduler": "fulmen.trainer.callbacks.gradient_accumulation",
        "Interval": "fulmen.trainer.callbacks.timer",
        "LambdaCallback": "fulmen.trainer.callbacks.lambda_callback",
        "LearningRateMonitor": "fulmen.trainer.callbacks.lr_monitor",
        "MetricNotLoggedError": "fulmen.trainer.callbacks.monitored",
        "MetricsTextColumn": "fulmen.trainer.callbacks.rich_columns",
        "ModelCheckpoint": "fulmen.trainer.callbacks.model_checkpoint",
        "ModelPruning": "fulmen.trainer.callbacks.pruning",
        "ModelSummary": "fulmen.trainer.callbacks.model_summary",
        "OnExceptionCheckpoint": "fulmen.trainer.callbacks.on_exception_checkpoint",
        "ProcessingSpeedColumn": "fulmen.trainer.callbacks.rich_columns",
        "ProgressBar": "fulmen.trainer.callbacks.progress_bar",
        "RichModelSummary": "fulmen.trainer.callbacks.rich_model_summary",
        "RichProgressBar": "fulmen.trainer.callbacks.rich_progress_bar",
        "RichProgressBarTheme": "fulmen.trainer.callbacks.rich_theme",
        "SpikeDetection": "fulmen.trainer.callbacks.spike",
        "StochasticWeightAveraging": "fulmen.trainer.callbacks.stochastic_weight_averaging",
        "TQDMProgressBar": "fulmen.trainer.callbacks.tqdm_progress_bar",
        "ThroughputMonitor": "fulmen.trainer.callbacks.throughput",
        "Timer": "fulmen.trainer.callbacks.timer",
        "Tqdm": "fulmen.trainer.callbacks.tqdm_bar",
        "WeightAveraging": "fulmen.trainer.callbacks.weight_averaging",
        "WriteInterval": "fulmen.trainer.core.writes_predictions",
        "convert_inf": "fulmen.trainer.callbacks.tqdm_bar",
        "get_standard_metrics": "fulmen.trainer.callbacks.progress_bar",
    },
)
