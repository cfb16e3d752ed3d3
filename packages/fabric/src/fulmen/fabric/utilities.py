"""Face: the utility names that users import."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.data.length import has_iterable_dataset as has_iterable_dataset
    from fulmen.fabric.data.length import has_len as has_len
    from fulmen.fabric.data.length import sized_len as sized_len
    from fulmen.fabric.data.length import suggested_max_num_workers as suggested_max_num_workers
    from fulmen.fabric.data.samplers import DistributedSamplerWrapper as DistributedSamplerWrapper
    from fulmen.fabric.enums import LightningEnum as LightningEnum
    from fulmen.fabric.errors import MisconfigurationException as MisconfigurationException
    from fulmen.fabric.filesystem import get_filesystem as get_filesystem
    from fulmen.fabric.measure.device_flops import get_available_flops as get_available_flops
    from fulmen.fabric.measure.spikes import SpikeDetection as SpikeDetection
    from fulmen.fabric.measure.spikes import TrainingSpikeException as TrainingSpikeException
    from fulmen.fabric.measure.throughput import Throughput as Throughput
    from fulmen.fabric.measure.throughput import ThroughputMonitor as ThroughputMonitor
    from fulmen.fabric.measure.throughput import measure_flops as measure_flops
    from fulmen.fabric.rank_zero import LightningDeprecationWarning as LightningDeprecationWarning
    from fulmen.fabric.rank_zero import PossibleUserWarning as PossibleUserWarning
    from fulmen.fabric.rank_zero import WarningCache as WarningCache
    from fulmen.fabric.rank_zero import disable_possible_user_warnings as disable_possible_user_warnings
    from fulmen.fabric.rank_zero import rank_prefixed_message as rank_prefixed_message
    from fulmen.fabric.rank_zero import rank_zero_debug as rank_zero_debug
    from fulmen.fabric.rank_zero import rank_zero_deprecation as rank_zero_deprecation
    from fulmen.fabric.rank_zero import rank_zero_info as rank_zero_info
    from fulmen.fabric.rank_zero import rank_zero_only as rank_zero_only
    from fulmen.fabric.rank_zero import rank_zero_warn as rank_zero_warn
    from fulmen.fabric.seeding import isolate_rng as isolate_rng
    from fulmen.fabric.seeding import max_seed_value as max_seed_value
    from fulmen.fabric.seeding import min_seed_value as min_seed_value
    from fulmen.fabric.seeding import pl_worker_init_function as pl_worker_init_function
    from fulmen.fabric.seeding import reset_seed as reset_seed
    from fulmen.fabric.seeding import seed_everything as seed_everything
    from fulmen.fabric.strategies.shared_filesystem import is_shared_filesystem as is_shared_filesystem
    from fulmen.fabric.trees import CONVERSION_DTYPES as CONVERSION_DTYPES
    from fulmen.fabric.trees import AttributeDict as AttributeDict
    from fulmen.fabric.trees import convert_tensors_to_scalars as convert_tensors_to_scalars
    from fulmen.fabric.trees import convert_to_tensors as convert_to_tensors
    from fulmen.fabric.trees import move_data_to_device as move_data_to_device
    from fulmen.fabric.types import CollectibleGroup as CollectibleGroup
    from fulmen.fabric.types import Optimizable as Optimizable
    from fulmen.fabric.types import Stateful as Stateful
    from fulmen.fabric.types import Steppable as Steppable

_WHERE = {
    # apply to batches
    "AttributeDict": "fulmen.fabric.trees",
    "CONVERSION_DTYPES": "fulmen.fabric.trees",
    "convert_tensors_to_scalars": "fulmen.fabric.trees",
    "convert_to_tensors": "fulmen.fabric.trees",
    "move_data_to_device": "fulmen.fabric.trees",
    # loaders and samplers
    "DistributedSamplerWrapper": "fulmen.fabric.data.samplers",
    "has_iterable_dataset": "fulmen.fabric.data.length",
    "has_len": "fulmen.fabric.data.length",
    "sized_len": "fulmen.fabric.data.length",
    "suggested_max_num_workers": "fulmen.fabric.data.length",
    # files
    "get_filesystem": "fulmen.fabric.filesystem",
    "is_shared_filesystem": "fulmen.fabric.strategies.shared_filesystem",
    # rank zero
    "LightningDeprecationWarning": "fulmen.fabric.rank_zero",
    "PossibleUserWarning": "fulmen.fabric.rank_zero",
    "WarningCache": "fulmen.fabric.rank_zero",
    "disable_possible_user_warnings": "fulmen.fabric.rank_zero",
    "rank_prefixed_message": "fulmen.fabric.rank_zero",
    "rank_zero_debug": "fulmen.fabric.rank_zero",
    "rank_zero_deprecation": "fulmen.fabric.rank_zero",
    "rank_zero_info": "fulmen.fabric.rank_zero",
    "rank_zero_only": "fulmen.fabric.rank_zero",
    "rank_zero_warn": "fulmen.fabric.rank_zero",
    # seeds
    "isolate_rng": "fulmen.fabric.seeding",
    "max_seed_value": "fulmen.fabric.seeding",
    "min_seed_value": "fulmen.fabric.seeding",
    "pl_worker_init_function": "fulmen.fabric.seeding",
    "reset_seed": "fulmen.fabric.seeding",
    "seed_everything": "fulmen.fabric.seeding",
    # measurements
    "SpikeDetection": "fulmen.fabric.measure.spikes",
    "Throughput": "fulmen.fabric.measure.throughput",
    "ThroughputMonitor": "fulmen.fabric.measure.throughput",
    "TrainingSpikeException": "fulmen.fabric.measure.spikes",
    "get_available_flops": "fulmen.fabric.measure.device_flops",
    "measure_flops": "fulmen.fabric.measure.throughput",
    # errors, types, enums
    "MisconfigurationException": "fulmen.fabric.errors",
    "CollectibleGroup": "fulmen.fabric.types",
    "Optimizable": "fulmen.fabric.types",
    "Stateful": "fulmen.fabric.types",
    "Steppable": "fulmen.fabric.types",
    "LightningEnum": "fulmen.fabric.enums",
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_face(__name__, _WHERE)
