"""A user's loaders made ready for a stage: checked, viewed, sharded, combined.

The user's objects are never changed and never built anew; see `fulmen.fabric.data.resumable`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sized
from types import GeneratorType
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

from fulmen.fabric.data.length import sized_len, suggested_max_num_workers
from fulmen.fabric.data.resumable import ResumableLoader
from fulmen.fabric.rank_zero import PossibleUserWarning, rank_zero_warn, warn_once
from fulmen.trainer.data.combined_loader import CombinedLoader
from fulmen.trainer.data.sources import PreparedLoaders
from fulmen.trainer.data.unrepeated import share_without_repeats, with_samplers
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.stages import Stage

# Iterating them a second time gives nothing: every epoch after the first would be empty.
_ONE_SHOT: tuple[type[Any], ...] = (
    GeneratorType, _BaseDataLoaderIter, zip, map, filter, enumerate, reversed,
    itertools.chain, itertools.islice, itertools.starmap, type(iter([])), type(iter(())), type(iter(range(0))),
)  # fmt: skip
_NO_LOADERS = (type, str, bytes, int, float, complex, torch.nn.Module)


class Processes(Protocol):
    """What is asked of a strategy here."""

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any] | None:
        """`num_replicas` and `rank`; None if every process reads all data."""

    @property
    def root_device(self) -> torch.device:
        """The device of this process."""

    @property
    def global_rank(self) -> int:
        """The rank of this process."""

    def process_dataloader(self, dataloader: Any) -> Any:
        """The loader as the strategy wants it."""

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """`tensor` reduced over all processes."""


def prepare(
    raw: Any,
    *,
    stage: Stage,
    strategy: Processes,
    overfit_batches: int | float = 0,
    use_distributed_sampler: bool = True,
    seed: int = 0,
    source: str = "The loader",
    read_once: bool = False,
) -> PreparedLoaders:
    """The loaders `raw`, ready for `stage`.

    Args:
        raw: A loader, any nesting of loaders in lists, tuples and dicts, or a `CombinedLoader`. For training, several
            loaders give one batch of each at a time, and the shorter ones begin again; else one comes after the other.
        stage: What they are for.
        strategy: Tells this process its share, and may exchange the views.
        overfit_batches: If not 0, order is kept: the same few batches must come again.
        use_distributed_sampler: False leaves it to the user which process reads what.
        seed: The seed of the run, the same in all processes.
        source: Where they came from ("Model.train_dataloader()"), for messages.
        read_once: Does this run read them once only, so that a generator will do?

    Raises:
        ArgumentTypeError: Something in `raw` is no loader.
        ConfigurationError: A loader is empty or can be read once only, or a `CombinedLoader` does not fit the stage.
    """
    training = stage is Stage.TRAIN
    combined = _as_combined(raw, stage, source)
    views: list[ResumableLoader] = []
    processed: list[Any] = []
    for loader in combined.flattened:
        _check_loader(loader, source, read_once=read_once)
        _advise(loader, stage)
        if overfit_batches:
            loader = _in_order(loader)
        view = _view(loader, training, strategy, use_distributed_sampler, seed)
        views.append(view)
        processed.append(strategy.process_dataloader(view))
    if training and not views:
        raise ConfigurationError(
            f"{source} gave {raw!r}, in which there is no loader. Training needs batches."
            " Give it a torch.utils.data.DataLoader."
        )
    ready = CombinedLoader(combined.iterables, combined.mode)  # type: ignore[arg-type]  # checked when it was made
    ready.flattened = processed
    is_single = training and not isinstance(raw, CombinedLoader) and len(views) == 1 and combined.iterables is raw
    if training and ready.length() is None:  # to know the last batch, the next one is fetched early
        for view in views:
            view.expect_look_ahead()
    return PreparedLoaders(processed[0] if is_single else ready, views, original=raw)


def has_len_all_ranks(
    dataloader: object, strategy: Processes, allow_zero_length_dataloader_with_multiple_devices: bool = False
) -> TypeGuard[Sized]:
    """Does the loader know its length, in every process? All processes must call this together.

    Raises:
        ConfigurationError: It is empty here and not elsewhere, and that was not allowed.
    """
    length = sized_len(dataloader)
    if length is None:
        return False
    total = int(strategy.reduce(torch.tensor(length, device=strategy.root_device), reduce_op="sum"))
    if total == 0:
        rank_zero_warn(f"The {type(dataloader).__name__} has no batches, in no process. Nothing will run.")
    elif length == 0 and not allow_zero_length_dataloader_with_multiple_devices:
        raise ConfigurationError(
            f"The {type(dataloader).__name__} of process {strategy.global_rank} has no batches, and others have some."
            " Processes that wait for each other at every step would wait forever. Use fewer devices or more samples,"
            " or set allow_zero_length_dataloader_with_multiple_devices=True on the module or datamodule."
        )
    return True


def _as_combined(raw: Any, stage: Stage, where: str) -> CombinedLoader:
    if not isinstance(raw, CombinedLoader):
        if raw is None:
            raise ArgumentTypeError(
                f"{where} gave None. A loader was expected; the method may lack its `return`."
                " Return a torch.utils.data.DataLoader, or an empty list to have no loader."
            )
        return CombinedLoader(raw, "max_size_cycle" if stage is Stage.TRAIN else "sequential")
    if stage is Stage.TRAIN and raw.mode == "sequential":
        raise ConfigurationError(
            f"{where} gave CombinedLoader(mode='sequential'). In training every step takes one batch of each loader."
            " Pass mode='min_size', 'max_size_cycle' or 'max_size'."
        )
    if stage is Stage.PREDICT and raw.mode != "sequential":
        raise ConfigurationError(
            f"{where} gave CombinedLoader(mode={raw.mode!r}). Predictions are returned for each loader by itself."
            " Pass mode='sequential', or a list of loaders."
        )
    return raw


def _check_loader(loader: Any, where: str, *, read_once: bool) -> None:
    if isinstance(loader, Tensor):
        raise ArgumentTypeError(
            f"{where} gave a tensor of shape {tuple(loader.shape)}, which is no loader."
            " Iterating it would give its rows one by one, not batches."
            " Wrap it: DataLoader(TensorDataset(tensor), batch_size=32)."
        )
    is_iterable = hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")
    if isinstance(loader, _NO_LOADERS) or not is_iterable:
        raise ArgumentTypeError(
            f"{where} gave {loader!r} ({type(loader).__name__}), which is no loader."
            " A loader is anything that a for loop can take batches from, again in every epoch."
            " Give it a torch.utils.data.DataLoader."
        )
    if isinstance(loader, _ONE_SHOT) and not read_once:
        raise ArgumentTypeError(
            f"{where} gave a {type(loader).__name__}, which can be read only once."
            " Every epoch after the first would be empty, and so would the run after the sanity check."
            " Give it the loader itself, or an IterableDataset whose `__iter__` makes a new iterator."
        )
    if sized_len(loader) == 0:
        raise ConfigurationError(
            f"{where} gave a {type(loader).__name__} without batches. {_why_empty(loader)}"
            " Give it more samples, or an empty list in place of the loader to have none."
        )


def _why_empty(loader: Any) -> str:
    num_samples = sized_len(getattr(loader, "dataset", None))
    if num_samples and getattr(loader, "drop_last", False):
        return (
            f"Its dataset has {num_samples} samples, batch_size={loader.batch_size},"
            " and drop_last=True leaves out the only batch because it is not full."
        )
    return "Its dataset is empty." if num_samples == 0 else "Its length is 0."


def _advise(loader: Any, stage: Stage) -> None:
    if not isinstance(loader, DataLoader):
        return
    if stage is not Stage.TRAIN and _shuffles(loader):
        warn_once(
            f"The {stage.dataloader_prefix}_dataloader shuffles. Evaluation gives the same figures in any order, and"
            " predictions lose theirs. Leave out shuffle=True.",
            category=PossibleUserWarning,
        )


def advise_workers(prepared: PreparedLoaders, *, stage: Stage, num_local_processes: int) -> None:
    """Warn once if loaders load in the training process although cores are free.

    Args:
        prepared: The loaders of the stage.
        stage: What they are for.
        num_local_processes: How many training processes share this machine.
    """
    suggested = suggested_max_num_workers(num_local_processes)
    if suggested > 1 and any(getattr(view, "num_workers", None) == 0 for view in prepared.views):
        warn_once(
            f"The {stage.dataloader_prefix}_dataloader has no workers: the training process loads every batch itself."
            f" If loading is slow, pass num_workers={suggested} to the DataLoader.",
            category=PossibleUserWarning,
        )


def _shuffles(loader: DataLoader[Any]) -> bool:
    sampler = loader.sampler
    return isinstance(sampler, RandomSampler) or (isinstance(sampler, DistributedSampler) and sampler.shuffle)


def _in_order(loader: Any) -> Any:
    if not (isinstance(loader, DataLoader) and isinstance(loader.sampler, RandomSampler)):
        return loader
    rank_zero_warn(
        "Trainer(overfit_batches=...) switches off the shuffling of the loader: the same batches must come in every"
        " epoch. Pass shuffle=False to the DataLoader to say so."
    )
    return with_samplers(loader, sampler=SequentialSampler(loader.dataset))  # type: ignore[arg-type]


def _view(loader: Any, training: bool, strategy: Processes, shares: bool, seed: int) -> ResumableLoader:
    share = strategy.distributed_sampler_kwargs
    if share is None:
        return ResumableLoader(loader, seed=seed)
    rank, world_size = int(share["rank"]), int(share["num_replicas"])
    if shares and world_size > 1 and _can_be_shared(loader):
        if training:
            return ResumableLoader(loader, rank=rank, world_size=world_size, seed=seed)
        loader = share_without_repeats(loader, rank=rank, world_size=world_size, seed=seed)
        return ResumableLoader(loader, rank=rank, world_size=world_size, seed=seed)
    # Nothing is dealt out; only the workers of different processes must not draw the same numbers.
    return ResumableLoader(loader, seed=seed + rank)


def _can_be_shared(loader: Any) -> bool:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    samplers = (loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    return not any(isinstance(sampler, DistributedSampler) for sampler in samplers)
