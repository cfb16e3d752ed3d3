"""Face: the utility names that users import."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel as DistributedDataParallel

    from fulmen.fabric.accelerators.out_of_memory import garbage_collection_cuda as garbage_collection_cuda
    from fulmen.fabric.accelerators.out_of_memory import is_cuda_out_of_memory as is_cuda_out_of_memory
    from fulmen.fabric.accelerators.out_of_memory import is_cudnn_snafu as is_cudnn_snafu
    from fulmen.fabric.accelerators.out_of_memory import is_oom_error as is_oom_error
    from fulmen.fabric.accelerators.out_of_memory import is_out_of_cpu_memory as is_out_of_cpu_memory
    from fulmen.fabric.checkpoint_io.deepspeed_folder import (
        convert_zero_checkpoint_to_fp32_state_dict as convert_zero_checkpoint_to_fp32_state_dict,
    )
    from fulmen.fabric.checkpoint_io.deepspeed_folder import ds_checkpoint_dir as ds_checkpoint_dir
    from fulmen.fabric.data.length import suggested_max_num_workers as suggested_max_num_workers
    from fulmen.fabric.enums import LightningEnum as LightningEnum
    from fulmen.fabric.errors import MisconfigurationException as MisconfigurationException
    from fulmen.fabric.measure.throughput import measure_flops as measure_flops
    from fulmen.fabric.rank_zero import WarningCache as WarningCache
    from fulmen.fabric.rank_zero import disable_possible_user_warnings as disable_possible_user_warnings
    from fulmen.fabric.rank_zero import rank_zero_debug as rank_zero_debug
    from fulmen.fabric.rank_zero import rank_zero_deprecation as rank_zero_deprecation
    from fulmen.fabric.rank_zero import rank_zero_info as rank_zero_info
    from fulmen.fabric.rank_zero import rank_zero_only as rank_zero_only
    from fulmen.fabric.rank_zero import rank_zero_warn as rank_zero_warn
    from fulmen.fabric.seeding import isolate_rng as isolate_rng
    from fulmen.fabric.seeding import pl_worker_init_function as pl_worker_init_function
    from fulmen.fabric.seeding import seed_everything as seed_everything
    from fulmen.fabric.strategies.shared_filesystem import is_shared_filesystem as is_shared_filesystem
    from fulmen.fabric.trees import AttributeDict as AttributeDict
    from fulmen.fabric.trees import move_data_to_device as move_data_to_device
    from fulmen.trainer.checkpoint.fetch import download_model_from_registry as download_model_from_registry
    from fulmen.trainer.checkpoint.fetch import find_model_local_ckpt_path as find_model_local_ckpt_path
    from fulmen.trainer.checkpoint.migrate import migrate_checkpoint as migrate_checkpoint
    from fulmen.trainer.core.compiled import from_compiled as from_compiled
    from fulmen.trainer.core.compiled import to_uncompiled as to_uncompiled
    from fulmen.trainer.core.hparams import clean_namespace as clean_namespace
    from fulmen.trainer.core.hparams import is_picklable as is_picklable
    from fulmen.trainer.core.hparams import lightning_getattr as lightning_getattr
    from fulmen.trainer.core.hparams import lightning_hasattr as lightning_hasattr
    from fulmen.trainer.core.hparams import lightning_setattr as lightning_setattr
    from fulmen.trainer.core.hparams import save_hyperparameters as save_hyperparameters
    from fulmen.trainer.core.init_args import collect_init_args as collect_init_args
    from fulmen.trainer.core.init_args import get_init_args as get_init_args
    from fulmen.trainer.core.init_args import parse_class_init_keys as parse_class_init_keys
    from fulmen.trainer.core.needs import STEP_OUTPUT as STEP_OUTPUT
    from fulmen.trainer.core.needs import LRSchedulerConfig as LRSchedulerConfig
    from fulmen.trainer.core.needs import LRSchedulerConfigType as LRSchedulerConfigType
    from fulmen.trainer.core.needs import LRSchedulerPLType as LRSchedulerPLType
    from fulmen.trainer.core.needs import LRSchedulerType as LRSchedulerType
    from fulmen.trainer.core.needs import LRSchedulerTypeTuple as LRSchedulerTypeTuple
    from fulmen.trainer.core.needs import LRSchedulerTypeUnion as LRSchedulerTypeUnion
    from fulmen.trainer.core.needs import OptimizerConfig as OptimizerConfig
    from fulmen.trainer.core.needs import OptimizerLRScheduler as OptimizerLRScheduler
    from fulmen.trainer.core.needs import OptimizerLRSchedulerConfig as OptimizerLRSchedulerConfig
    from fulmen.trainer.core.parameters import FLOAT16_EPSILON as FLOAT16_EPSILON
    from fulmen.trainer.core.parameters import FLOAT32_EPSILON as FLOAT32_EPSILON
    from fulmen.trainer.core.parameters import FLOAT64_EPSILON as FLOAT64_EPSILON
    from fulmen.trainer.core.parameters import GradClipAlgorithmType as GradClipAlgorithmType
    from fulmen.trainer.core.parameters import find_shared_parameters as find_shared_parameters
    from fulmen.trainer.core.parameters import grad_norm as grad_norm
    from fulmen.trainer.core.parameters import recursive_detach as recursive_detach
    from fulmen.trainer.core.parameters import set_shared_parameters as set_shared_parameters
    from fulmen.trainer.data.batch import BType as BType
    from fulmen.trainer.data.batch import extract_batch_size as extract_batch_size
    from fulmen.trainer.data.combined_loader import CombinedLoader as CombinedLoader
    from fulmen.trainer.data.prepare_loaders import has_len_all_ranks as has_len_all_ranks
    from fulmen.trainer.data.unrepeated import UnrepeatedDistributedSampler as UnrepeatedDistributedSampler
    from fulmen.trainer.data.unrepeated import (
        UnrepeatedDistributedSamplerWrapper as UnrepeatedDistributedSamplerWrapper,
    )
    from fulmen.trainer.demos.vision import get_torchvision_model as get_torchvision_model
    from fulmen.trainer.errors import SIGTERMException as SIGTERMException
    from fulmen.trainer.signature import is_overridden as is_overridden
    from fulmen.trainer.signature import is_param_in_hook_signature as is_param_in_hook_signature
    from fulmen.trainer.strategies.ddp import prepare_for_backward as prepare_for_backward
    from fulmen.trainer.summary.layers import LEFTOVER_PARAMS_NAME as LEFTOVER_PARAMS_NAME
    from fulmen.trainer.summary.layers import NOT_APPLICABLE as NOT_APPLICABLE
    from fulmen.trainer.summary.layers import UNKNOWN_SIZE as UNKNOWN_SIZE
    from fulmen.trainer.summary.layers import LayerSummary as LayerSummary
    from fulmen.trainer.summary.layers import ModelSummary as ModelSummary
    from fulmen.trainer.summary.layers import parse_batch_shape as parse_batch_shape
    from fulmen.trainer.summary.layers import summarize as summarize
    from fulmen.trainer.summary.table import PARAMETER_NUM_UNITS as PARAMETER_NUM_UNITS
    from fulmen.trainer.summary.table import get_formatted_model_size as get_formatted_model_size
    from fulmen.trainer.summary.table import get_human_readable_count as get_human_readable_count

_WHERE = {
    # data
    "BType": "fulmen.trainer.data.batch",
    "extract_batch_size": "fulmen.trainer.data.batch",
    "CombinedLoader": "fulmen.trainer.data.combined_loader",
    "has_len_all_ranks": "fulmen.trainer.data.prepare_loaders",
    "UnrepeatedDistributedSampler": "fulmen.trainer.data.unrepeated",
    "UnrepeatedDistributedSamplerWrapper": "fulmen.trainer.data.unrepeated",
    "prepare_for_backward": "fulmen.trainer.strategies.ddp",
    "move_data_to_device": "fulmen.fabric.trees",
    "suggested_max_num_workers": "fulmen.fabric.data.length",
    # seeds
    "isolate_rng": "fulmen.fabric.seeding",
    "seed_everything": "fulmen.fabric.seeding",
    "pl_worker_init_function": "fulmen.fabric.seeding",
    # rank zero
    "WarningCache": "fulmen.fabric.rank_zero",
    "disable_possible_user_warnings": "fulmen.fabric.rank_zero",
    "rank_zero_debug": "fulmen.fabric.rank_zero",
    "rank_zero_deprecation": "fulmen.fabric.rank_zero",
    "rank_zero_info": "fulmen.fabric.rank_zero",
    "rank_zero_only": "fulmen.fabric.rank_zero",
    "rank_zero_warn": "fulmen.fabric.rank_zero",
    # errors
    "MisconfigurationException": "fulmen.fabric.errors",
    "SIGTERMException": "fulmen.trainer.errors",
    # memory
    "garbage_collection_cuda": "fulmen.fabric.accelerators.out_of_memory",
    "is_cuda_out_of_memory": "fulmen.fabric.accelerators.out_of_memory",
    "is_cudnn_snafu": "fulmen.fabric.accelerators.out_of_memory",
    "is_oom_error": "fulmen.fabric.accelerators.out_of_memory",
    "is_out_of_cpu_memory": "fulmen.fabric.accelerators.out_of_memory",
    "recursive_detach": "fulmen.trainer.core.parameters",
    # hooks and signatures
    "is_overridden": "fulmen.trainer.signature",
    "is_param_in_hook_signature": "fulmen.trainer.signature",
    # hyperparameters
    "AttributeDict": "fulmen.fabric.trees",
    "clean_namespace": "fulmen.trainer.core.hparams",
    "is_picklable": "fulmen.trainer.core.hparams",
    "lightning_getattr": "fulmen.trainer.core.hparams",
    "lightning_hasattr": "fulmen.trainer.core.hparams",
    "lightning_setattr": "fulmen.trainer.core.hparams",
    "save_hyperparameters": "fulmen.trainer.core.hparams",
    "collect_init_args": "fulmen.trainer.core.init_args",
    "get_init_args": "fulmen.trainer.core.init_args",
    "parse_class_init_keys": "fulmen.trainer.core.init_args",
    # parameters and gradients
    "FLOAT16_EPSILON": "fulmen.trainer.core.parameters",
    "FLOAT32_EPSILON": "fulmen.trainer.core.parameters",
    "FLOAT64_EPSILON": "fulmen.trainer.core.parameters",
    "GradClipAlgorithmType": "fulmen.trainer.core.parameters",
    "find_shared_parameters": "fulmen.trainer.core.parameters",
    "grad_norm": "fulmen.trainer.core.parameters",
    "set_shared_parameters": "fulmen.trainer.core.parameters",
    # compiled modules
    "from_compiled": "fulmen.trainer.core.compiled",
    "to_uncompiled": "fulmen.trainer.core.compiled",
    # checkpoints
    "download_model_from_registry": "fulmen.trainer.checkpoint.fetch",
    "find_model_local_ckpt_path": "fulmen.trainer.checkpoint.fetch",
    "migrate_checkpoint": "fulmen.trainer.checkpoint.migrate",
    # summaries
    "LEFTOVER_PARAMS_NAME": "fulmen.trainer.summary.layers",
    "LayerSummary": "fulmen.trainer.summary.layers",
    "ModelSummary": "fulmen.trainer.summary.layers",
    "NOT_APPLICABLE": "fulmen.trainer.summary.layers",
    "UNKNOWN_SIZE": "fulmen.trainer.summary.layers",
    "parse_batch_shape": "fulmen.trainer.summary.layers",
    "summarize": "fulmen.trainer.summary.layers",
    "PARAMETER_NUM_UNITS": "fulmen.trainer.summary.table",
    "get_formatted_model_size": "fulmen.trainer.summary.table",
    "get_human_readable_count": "fulmen.trainer.summary.table",
    # measurements and the machine
    "measure_flops": "fulmen.fabric.measure.throughput",
    "convert_zero_checkpoint_to_fp32_state_dict": "fulmen.fabric.checkpoint_io.deepspeed_folder",
    "ds_checkpoint_dir": "fulmen.fabric.checkpoint_io.deepspeed_folder",
    "is_shared_filesystem": "fulmen.fabric.strategies.shared_filesystem",
    # models
    "get_torchvision_model": "fulmen.trainer.demos.vision",
    # types and enums
    "LightningEnum": "fulmen.fabric.enums",
    "LRSchedulerConfig": "fulmen.trainer.core.needs",
    "LRSchedulerConfigType": "fulmen.trainer.core.needs",
    "LRSchedulerPLType": "fulmen.trainer.core.needs",
    "LRSchedulerType": "fulmen.trainer.core.needs",
    "LRSchedulerTypeTuple": "fulmen.trainer.core.needs",
    "LRSchedulerTypeUnion": "fulmen.trainer.core.needs",
    "OptimizerConfig": "fulmen.trainer.core.needs",
    "OptimizerLRScheduler": "fulmen.trainer.core.needs",
    "OptimizerLRSchedulerConfig": "fulmen.trainer.core.needs",
    "STEP_OUTPUT": "fulmen.trainer.core.needs",
    "DistributedDataParallel": "torch.nn.parallel",
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_face(__name__, _WHERE)
