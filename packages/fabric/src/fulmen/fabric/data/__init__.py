"""Samples and batches, sharded and resumable."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.data.length import has_iterable_dataset as has_iterable_dataset
    from fulmen.fabric.data.length import has_len as has_len
    from fulmen.fabric.data.length import sized_len as sized_len
    from fulmen.fabric.data.length import suggested_max_num_workers as suggested_max_num_workers
    from fulmen.fabric.data.position import Position as Position
    from fulmen.fabric.data.resumable import ResumableLoader as ResumableLoader
    from fulmen.fabric.data.samplers import DistributedSamplerWrapper as DistributedSamplerWrapper
    from fulmen.fabric.data.samplers import ShardedSampler as ShardedSampler

__all__ = [
    "DistributedSamplerWrapper",
    "Position",
    "ResumableLoader",
    "ShardedSampler",
    "has_iterable_dataset",
    "has_len",
    "sized_len",
    "suggested_max_num_workers",
]
__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "DistributedSamplerWrapper": "fulmen.fabric.data.samplers",
        "Position": "fulmen.fabric.data.position",
        "ResumableLoader": "fulmen.fabric.data.resumable",
        "ShardedSampler": "fulmen.fabric.data.samplers",
        "has_iterable_dataset": "fulmen.fabric.data.length",
        "has_len": "fulmen.fabric.data.length",
        "sized_len": "fulmen.fabric.data.length",
        "suggested_max_num_workers": "fulmen.fabric.data.length",
    },
)
