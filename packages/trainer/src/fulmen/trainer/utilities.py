"""Face: the utility names that users import."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.accelerators.out_of_memory import garbage_collection_cuda as garbage_collection_cuda
    from fulmen.fabric.accelerators.out_of_memory import is_oom_error as is_oom_error
    from fulmen.fabric.errors import MisconfigurationException as MisconfigurationException
    from fulmen.fabric.rank_zero import disable_possible_user_warnings as disable_possible_user_warnings
    from fulmen.fabric.rank_zero import rank_zero_debug as rank_zero_debug
    from fulmen.fabric.rank_zero import rank_zero_deprecation as rank_zero_deprecation
    from fulmen.fabric.rank_zero import rank_zero_info as rank_zero_info
    from fulmen.fabric.rank_zero import rank_zero_only as rank_zero_only
    from fulmen.fabric.rank_zero import rank_zero_warn as rank_zero_warn
    from fulmen.fabric.seeding import isolate_rng as isolate_rng
    from fulmen.fabric.seeding import pl_worker_init_function as pl_worker_init_function
    from fulmen.fabric.seeding import seed_everything as seed_everything
    from fulmen.fabric.trees import AttributeDict as AttributeDict
    from fulmen.fabric.trees import move_data_to_device as move_data_to_device
    from fulmen.trainer.checkpoint.migrate import migrate_checkpoint as migrate_checkpoint
    from fulmen.trainer.core.hparams import lightning_getattr as lightning_getattr
    from fulmen.trainer.core.hparams import lightning_hasattr as lightning_hasattr
    from fulmen.trainer.core.hparams import lightning_setattr as lightning_setattr
    from fulmen.trainer.core.needs import STEP_OUTPUT as STEP_OUTPUT
    from fulmen.trainer.core.needs import LRSchedulerConfig as LRSchedulerConfig
    from fulmen.trainer.core.needs import LRSchedulerConfigType as LRSchedulerConfigType
    from fulmen.trainer.core.needs import LRSchedulerPLType as LRSchedulerPLType
    from fulmen.trainer.core.needs import LRSchedulerType as LRSchedulerType
    from fulmen.trainer.core.needs import LRSchedulerTypeUnion as LRSchedulerTypeUnion
    from fulmen.trainer.core.needs import OptimizerConfig as OptimizerConfig
    from fulmen.trainer.core.needs import OptimizerLRScheduler as OptimizerLRScheduler
    from fulmen.trainer.core.needs import OptimizerLRSchedulerConfig as OptimizerLRSchedulerConfig
    from fulmen.trainer.data.batch import extract_batch_size as extract_batch_size
    from fulmen.trainer.data.combined_loader import CombinedLoader as CombinedLoader
    from fulmen.trainer.data.prepare_loaders import has_len_all_ranks as has_len_all_ranks
    from fulmen.trainer.errors import SIGTERMException as SIGTERMException
    from fulmen.trainer.signature import is_overridden as is_overridden
    from fulmen.trainer.signature import is_param_in_hook_signature as is_param_in_hook_signature

_WHERE = {
    # data
    "CombinedLoader": "fulmen.trainer.data.combined_loader",
    "extract_batch_size": "fulmen.trainer.data.batch",
    "move_data_to_device": "fulmen.fabric.trees",
    "has_len_all_ranks": "fulmen.trainer.data.prepare_loaders",
    # seeds
    "isolate_rng": "fulmen.fabric.seeding",
    "seed_everything": "fulmen.fabric.seeding",
    "pl_worker_init_function": "fulmen.fabric.seeding",
    # rank zero
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
    "is_oom_error": "fulmen.fabric.accelerators.out_of_memory",
    "garbage_collection_cuda": "fulmen.fabric.accelerators.out_of_memory",
    # hooks and signatures
    "is_overridden": "fulmen.trainer.signature",
    "is_param_in_hook_signature": "fulmen.trainer.signature",
    # hyperparameters
    "AttributeDict": "fulmen.fabric.trees",
    "lightning_getattr": "fulmen.trainer.core.hparams",
    "lightning_hasattr": "fulmen.trainer.core.hparams",
    "lightning_setattr": "fulmen.trainer.core.hparams",
    # checkpoints
    "migrate_checkpoint": "fulmen.trainer.checkpoint.migrate",
    # types
    "LRSchedulerConfig": "fulmen.trainer.core.needs",
    "LRSchedulerConfigType": "fulmen.trainer.core.needs",
    "LRSchedulerPLType": "fulmen.trainer.core.needs",
    "LRSchedulerType": "fulmen.trainer.core.needs",
    "LRSchedulerTypeUnion": "fulmen.trainer.core.needs",
    "OptimizerConfig": "fulmen.trainer.core.needs",
    "OptimizerLRScheduler": "fulmen.trainer.core.needs",
    "OptimizerLRSchedulerConfig": "fulmen.trainer.core.needs",
    "STEP_OUTPUT": "fulmen.trainer.core.needs",
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_face(__name__, _WHERE)
