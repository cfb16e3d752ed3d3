"""From the user's loaders to the next batch on its device."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.trainer.data.batch import BType as BType
    from fulmen.trainer.data.batch import extract_batch_size as extract_batch_size
    from fulmen.trainer.data.combined_loader import CombinedLoader as CombinedLoader
    from fulmen.trainer.data.prepare_loaders import has_len_all_ranks as has_len_all_ranks
    from fulmen.trainer.data.unrepeated import UnrepeatedDistributedSampler as UnrepeatedDistributedSampler
    from fulmen.trainer.data.unrepeated import (
        UnrepeatedDistributedSamplerWrapper as UnrepeatedDistributedSamplerWrapper,
    )

__all__ = [
    "BType",
    "CombinedLoader",
    "UnrepeatedDistributedSampler",
    "UnrepeatedDistributedSamplerWrapper",
    "extract_batch_size",
    "has_len_all_ranks",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "BType": "fulmen.trainer.data.batch",
        "CombinedLoader": "fulmen.trainer.data.combined_loader",
        "UnrepeatedDistributedSampler": "fulmen.trainer.data.unrepeated",
        "UnrepeatedDistributedSamplerWrapper": "fulmen.trainer.data.unrepeated",
        "extract_batch_size": "fulmen.trainer.data.batch",
        "has_len_all_ranks": "fulmen.trainer.data.prepare_loaders",
    },
)
