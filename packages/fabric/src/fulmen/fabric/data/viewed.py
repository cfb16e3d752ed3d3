"""A copy of the user's loader that deals its samples out to processes, and counts the batches of indices.

The object is copied, not what it holds. Where nothing of that can be done, the view is the user's loader itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader

from fulmen.fabric.data.length import has_iterable_dataset, is_map_loader
from fulmen.fabric.data.one_pass import Pass
from fulmen.fabric.data.parts import is_sharded, keeps_state, loader_parts
from fulmen.fabric.data.position import Position
from fulmen.fabric.data.samplers import PositionedBatches, ShardedSampler
from fulmen.fabric.data.worker_seeds import BatchSeeds, Givers, SeededRequests, Seeds, StreamSeeds, seed_of_batch
from fulmen.fabric.seeding import derive_seed


class LoaderView:
    """The copy, and what of it is ours.

    Args:
        loader: The user's; it is not changed.
        rank, world_size, shuffle, drop_last, repeats, seed, seed_workers: As for `ResumableLoader`.
    """

    def __init__(
        self,
        loader: Any,
        *,
        rank: int,
        world_size: int,
        shuffle: bool | None,
        drop_last: bool,
        repeats: bool,
        seed: int,
        seed_workers: bool,
    ) -> None:
        self.loader: Any = loader
        self._of_user, self._rank, self._world_size = loader, rank, world_size
        self.sharded: ShardedSampler | None = None
        """Deals the units out; None if the user does."""
        self.dealt: Iterable[Any] | None = None
        """The batches of this process's units."""
        self.batches: PositionedBatches | None = None
        """Counts them; None if nobody can."""
        self.seeds_batches = False
        # Where we do not count the batches of indices, seeds alone go with what workers are asked for.
        self._requests = (
            SeededRequests.of(_asked_for(loader)) if seed_workers and isinstance(loader, DataLoader) else None
        )
        deals = world_size > 1 and is_map_loader(loader) and not is_sharded(loader)
        if not is_map_loader(loader) or (keeps_state(loader) and not deals):
            return
        batches = _asked_for(loader)
        viewed = copy.copy(loader)
        attributes = viewed.__dict__
        # Workers that the original keeps alive read from its own sampler.
        attributes["_iterator"] = None
        if not is_sharded(loader):
            # A lone process needs it when it goes on for several.
            deals_samples = loader.batch_sampler is None or type(batches) is BatchSampler
            self.sharded = ShardedSampler(
                loader.sampler if deals_samples else batches,
                rank=rank,
                world_size=world_size,
                shuffle=shuffle if world_size > 1 else None,
                seed=seed,
                drop_last=drop_last,
                repeats=repeats,
            )
            self.dealt = self.sharded
            if deals_samples and loader.batch_sampler is not None:
                self.dealt = BatchSampler(self.sharded, batches.batch_size, batches.drop_last)
            if deals:
                batches = self.dealt
                if deals_samples:
                    attributes["sampler"] = self.sharded
        if keeps_state(loader):
            self._requests = SeededRequests.of(batches) if seed_workers else None
        else:
            self._requests = None
            self.seeds_batches = seed_workers and loader.num_workers > 0
            batches = self.batches = PositionedBatches(batches)
        attributes["sampler" if loader.batch_sampler is None else "batch_sampler"] = batches
        self.loader = viewed

    @property
    def units_per_batch(self) -> int:
        """Units that one batch of one process takes."""
        # Own batch samplers, and loaders that do not batch, are dealt piece by piece.
        return self.dealt.batch_size if isinstance(self.dealt, BatchSampler) else 1

    def length(self, place: Position, rank: int) -> int:
        """Batches of an epoch that was dealt anew at `place`, those before included; it must have a length."""
        sharded, dealt = self.sharded, self.dealt
        assert sharded is not None
        return place.length(
            len(sharded.sampler),  # type: ignore[arg-type]
            rank,
            drop_last=sharded.drop_last,
            repeats=sharded.repeats,
            whole_batches=isinstance(dealt, BatchSampler) and dealt.drop_last,
        )

    def iterate(self, this: Pass, seed: int) -> Iterator[Any]:
        """A new iterator, which draws a seed for its workers unless the uninterrupted run kept its workers.

        Args:
            this: The iteration that begins.
            seed: The seed of the run.
        """
        loader = self.loader
        if not isinstance(loader, DataLoader):
            return iter(loader)
        changed: dict[str, Any] = {}
        if this.reuses_workers and loader._iterator is None:
            changed["generator"] = torch.Generator()
        if this.num_workers != loader.num_workers:
            changed |= {"num_workers": this.num_workers, "persistent_workers": False}
            changed |= {"prefetch_factor": (loader.prefetch_factor or 2) if this.num_workers else None}
        requests = self._requests if this.num_workers else None
        if requests is not None:
            if keeps_state(loader) and has_iterable_dataset(loader):
                this.givers = this.givers or Givers(getattr(loader, "snapshot_every_n_steps", 1) or 0)
            requests.upcoming = self._seeds(this, seed)
            # A new iterator begins twice; one that goes on with its workers would have begun once.
            requests.passes_over = int(this.reuses_workers and loader._iterator is None and keeps_state(loader))
            changed["sampler" if loader.batch_sampler is None else "batch_sampler"] = requests
        attributes = loader.__dict__
        kept = {name: attributes[name] for name in changed}
        attributes.update(changed)
        try:
            batches = iter(loader)
        finally:
            attributes.update(kept)
        if this.num_workers:
            from fulmen.fabric.data.worker_queues import keep_queues

            keep_queues(batches)
        return batches if this.givers is None else this.givers.note(batches, self._giver)

    def _seeds(self, this: Pass, seed: int) -> Seeds:
        if not has_iterable_dataset(self.loader):
            return BatchSeeds(partial(seed_of_batch, seed, this.epoch, 0, self._world_size, self._rank))
        done = {} if this.givers is None else this.givers.at_state(this.given)
        return StreamSeeds(derive_seed(seed, this.epoch, self._world_size, self._rank), done)

    def _giver(self) -> int | None:
        # torchdata's word; its states are not exact without, and it has no public one.
        return getattr(self.loader._iterator, "_last_yielded_worker_id", None)

    def tell_epoch(self, epoch: int) -> None:
        """To whom it may concern among sampler, batch sampler, dataset and loader."""
        for listener in self._epoch_listeners():
            listener.set_epoch(epoch)

    def told_epoch(self, epoch: int) -> int | None:
        """The epoch that somebody else has told to the parts that listen; None if they all stand at `epoch`."""
        told = {getattr(listener, "epoch", epoch) for listener in self._epoch_listeners()} - {epoch}
        return told.pop() if len(told) == 1 else None

    def _epoch_listeners(self) -> list[Any]:
        parts = [part for part in loader_parts(self._of_user).values() if hasattr(part, "set_epoch")]
        if self.sharded is None:
            return parts
        return [self.sharded, *(part for part in parts if part is not self.sharded.sampler)]


def _asked_for(loader: DataLoader[Any]) -> Any:
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler


def replayed(loader: object) -> str:
    """What to tell where a loader has to be read again from the start of its epoch."""
    kind = type(getattr(loader, "dataset", loader)).__name__
    return (
        f"The run goes on in the middle of an epoch of a {kind}. It keeps no state and cannot be entered there, so the"
        " batches before are read again and dropped. To save that time, give it state_dict() and load_state_dict(), or"
        " read it by index."
    )


def not_dealt_anew(saved: int, now: int, *, by_index: bool, keeps_state: bool = False) -> str:
    """What to tell where another number of processes goes on with shares that cannot be dealt anew.

    Args:
        saved, now: How many processes there were, and are.
        by_index: Did the user deal out indices?
        keeps_state: Does the loader keep its own place?
    """
    if keeps_state:
        owner, way_out = "keeps its own place, in the share of one process", "Use torch.utils.data.DataLoader"
    elif by_index:
        owner, way_out = "has a DistributedSampler of its own", "Leave the sampler to us"
    else:
        owner, way_out = "is split by the code of the user", "Read it by index"
    return (
        f"The checkpoint was written by {saved} processes, and {now} go on in the middle of an epoch. The loader"
        f" {owner}, so what is left cannot be dealt out anew: some samples may come twice and others not at all."
        f" {way_out}, or resume with as many processes."
    )
