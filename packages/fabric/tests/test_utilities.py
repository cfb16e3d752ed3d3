"""The faces hold what programs written for the reference import from its `utilities`."""

import fulmen.fabric.utilities as face

NAMES = """
AttributeDict CONVERSION_DTYPES CollectibleGroup DistributedSamplerWrapper LightningDeprecationWarning LightningEnum
MisconfigurationException Optimizable PossibleUserWarning SpikeDetection Steppable Throughput ThroughputMonitor
TrainingSpikeException WarningCache convert_tensors_to_scalars convert_to_tensors disable_possible_user_warnings
get_available_flops get_filesystem has_iterable_dataset has_len max_seed_value measure_flops min_seed_value
move_data_to_device pl_worker_init_function rank_prefixed_message rank_zero_debug rank_zero_deprecation rank_zero_info
rank_zero_only rank_zero_warn reset_seed seed_everything sized_len suggested_max_num_workers
"""


def test_every_name_is_there():
    assert not set(NAMES.split()) - set(face.__all__)
    assert all(hasattr(face, name) for name in face.__all__)


def test_seeds_have_the_range_of_the_reference():
    assert (face.min_seed_value, face.max_seed_value) == (0, 2**32 - 1)
