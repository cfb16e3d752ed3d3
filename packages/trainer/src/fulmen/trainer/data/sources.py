"""Where the loaders of each stage come from, and what became of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from fulmen.fabric.data.length import sized_len
from fulmen.fabric.data.resumable import ResumableLoader
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.hooks import DataHooks
from fulmen.trainer.data.combine_modes import Count
from fulmen.trainer.data.combined_loader import CombinedLoader
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.signature import is_overridden
from fulmen.trainer.stages import Stage


@dataclass
class LoaderSource:
    """One place that gives loaders: a value that a user passed, or a method of a module or datamodule.

    Args:
        owner: Has the method; None if a value was passed.
        value: What was passed; it goes before the owner.
        name: The method: "train_dataloader", "val_dataloader", "test_dataloader" or "predict_dataloader".
        argument: How the user passed the value ("Trainer.fit(train_dataloaders=...)"), for messages.
    """

    owner: object | None
    value: object | None
    name: str
    argument: str = ""

    def is_defined(self) -> bool:
        """Is there anything to load?"""
        return self.value is not None or self._has_method()

    def is_module(self, module: object) -> bool:
        """Do the loaders come from a method of `module`?"""
        return self.value is None and self.owner is module

    def load(self) -> Any:
        """The loaders as the user gave them.

        Raises:
            ConfigurationError: There is nothing to load.
        """
        if self.value is not None:
            return self.value
        if self.owner is None or not self._has_method():
            raise ConfigurationError(
                f"{self} is not there. This stage takes its batches from it."
                f" Define `{self.name}` in the LightningModule or LightningDataModule, or pass loaders to the Trainer."
            )
        return getattr(self.owner, self.name)()

    def __str__(self) -> str:
        if self.value is not None:
            return self.argument or f"the value that was passed for {self.name}"
        return f"{type(self.owner).__name__}.{self.name}()" if self.owner is not None else f"{self.name}()"

    def _has_method(self) -> bool:
        owner = self.owner
        if owner is None:
            return False
        return is_overridden(self.name, owner, DataHooks) if isinstance(owner, DataHooks) else hasattr(owner, self.name)


@dataclass
class PreparedLoaders:
    """The loaders of one stage, ready to be iterated.

    Args:
        loader: What a `Fetcher` iterates. For evaluation always a `CombinedLoader`.
        views: The user's loaders, viewed, in order.
        original: The loaders as the user gave them.
        loaded_in_epoch: The epoch in which they were asked for.
    """

    loader: Any
    views: list[ResumableLoader]
    original: object = None
    loaded_in_epoch: int = 0

    def is_stale(self, epoch: int, every_n_epochs: int) -> bool:
        """Shall they be asked for anew in `epoch`? 0: never."""
        return is_stale(self.loaded_in_epoch, epoch, every_n_epochs)

    @property
    def lengths(self) -> list[Count]:
        """How many batches there are for each `dataloader_idx`; `math.inf` where nobody knows.

        That is one number for each loader if they are iterated one after the other, else one for all of them.
        """
        if isinstance(self.loader, CombinedLoader) and self.loader.mode == "sequential":
            return [_or_endless(sized_len(loader)) for loader in self.loader.flattened]
        return [self.length]

    @property
    def length(self) -> Count:
        """How many batches all of them together give; `math.inf` if nobody knows."""
        return _or_endless(self.loader.length() if isinstance(self.loader, CombinedLoader) else sized_len(self.loader))

    def set_epoch(self, epoch: int) -> None:
        """Tell every loader which epoch comes, so that it begins, and shuffles, anew."""
        for view in self.views:
            view.begin_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where every loader is, and what makes its order; loadable with `weights_only=True`."""
        state: dict[str, Any] = {
            "loaders": [view.state_dict() for view in self.views],
            "loaded_in_epoch": self.loaded_in_epoch,
        }
        if isinstance(self.loader, CombinedLoader):
            state |= {"given": self.loader.num_given, "marks": self.loader.marks}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let every loader go on where `state` was taken.

        Raises:
            ArgumentTypeError: It is the state of another number of loaders.
        """
        states = state["loaders"]
        if len(states) != len(self.views):
            raise ArgumentTypeError(
                f"The checkpoint holds the positions of {len(states)} loaders, and the run has {len(self.views)}."
                " A run goes on in the middle of an epoch with the loaders that it was saved with."
                " Give it as many loaders as then, or start from the weights alone."
            )
        for view, view_state in zip(self.views, states, strict=True):
            view.load_state_dict(view_state)
        self.loaded_in_epoch = state.get("loaded_in_epoch", self.loaded_in_epoch)
        if isinstance(self.loader, CombinedLoader):
            self.loader.keep_rounds(state.get("given"), state.get("marks", ()))

    def resting_state(self) -> dict[str, Any]:
        """What makes the next pass over them, which begins at the first batch; loadable with `weights_only=True`."""
        return {
            "loaders": [view.resting_state() for view in self.views],
            "loaded_in_epoch": self.loaded_in_epoch,
        }

    def load_resting_state(self, state: dict[str, Any], epoch: int, every_n_epochs: int) -> None:
        """Let the next pass be the one that would have followed, with these loaders if they are not asked for anew.

        Other loaders than those of the state begin anew.

        Args:
            state: From `resting_state`.
            epoch: The one in which the pass is made.
            every_n_epochs: As for `is_stale`.
        """
        is_outlived = is_stale(state["loaded_in_epoch"], epoch, every_n_epochs)
        if len(state["loaders"]) == len(self.views) and not is_outlived:
            self.loaded_in_epoch = state["loaded_in_epoch"]
            for view, view_state in zip(self.views, state["loaders"], strict=True):
                view.load_state_dict(view_state)


@dataclass
class RunData:
    """All loaders of a run, by stage. The sanity check reads the loaders of validation, prepared for itself.

    Args:
        datamodule: The user's, if there is one.
        sources: Where the loaders of each stage come from.
        prepared: The loaders that are ready.
        seed: The seed of the run that this one goes on with; None if it goes on with none.
    """

    datamodule: LightningDataModule | None = None
    sources: dict[Stage, LoaderSource] = field(default_factory=dict)
    prepared: dict[Stage, PreparedLoaders] = field(default_factory=dict)
    seed: int | None = None

    def source(self, stage: Stage) -> LoaderSource | None:
        """Where the loaders of `stage` come from; None if nobody said."""
        return self.sources.get(Stage.VALIDATE if stage is Stage.SANITY_CHECK else stage)

    def is_defined(self, stage: Stage) -> bool:
        """Is there a source for `stage`, with something to load?"""
        source = self.source(stage)
        return source is not None and source.is_defined()

    def attach(self, stage: Stage, source: LoaderSource) -> None:
        """Take the loaders of `stage` from `source`; what was prepared from another source is forgotten."""
        self.sources[stage] = source
        self.prepared.pop(stage, None)

    def set_epoch(self, stage: Stage, epoch: int) -> None:
        """Tell the loaders of `stage`, if they are ready, which epoch comes."""
        prepared = self.prepared.get(stage)
        if prepared is not None:
            prepared.set_epoch(epoch)

    def original(self, stage: Stage) -> Any:
        """The loaders of `stage` as the user gave them; None if they have not been loaded."""
        prepared = self.prepared.get(stage)
        return None if prepared is None else prepared.original


def is_stale(loaded_in_epoch: int, epoch: int, every_n_epochs: int) -> bool:
    """Shall loaders that were asked for in one epoch be asked for anew in another? 0: never."""
    return bool(every_n_epochs) and epoch - loaded_in_epoch >= every_n_epochs


def _or_endless(length: Count | None) -> Count:
    return math.inf if length is None else length
