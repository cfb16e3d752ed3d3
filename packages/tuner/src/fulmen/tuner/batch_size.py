"""Try batch sizes until memory runs out."""

import math
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fulmen.fabric.accelerators.out_of_memory import is_out_of_memory, release_memory
from fulmen.fabric.data.length import sized_len
from fulmen.fabric.data.resumable import ResumableLoader
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, ProcessFailedError
from fulmen.fabric.rank_zero import rank_zero_info
from fulmen.trainer.data.sources import PreparedLoaders, RunData
from fulmen.trainer.errors import StopRun
from fulmen.trainer.rehearsal import rehearsing
from fulmen.trainer.stages import EntryPoint, Stage
from fulmen.trainer.trainer import Trainer
from fulmen.tuner.attributes import TunedAttribute, find_attribute
from fulmen.tuner.batch_size_search import BatchSizeSearch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODES = ("power", "binsearch")
STAGES = {
    EntryPoint.FIT: Stage.TRAIN,
    EntryPoint.VALIDATE: Stage.VALIDATE,
    EntryPoint.TEST: Stage.TEST,
    EntryPoint.PREDICT: Stage.PREDICT,
}


@dataclass(frozen=True)
class BatchSizeOptions:
    """How to search; the names are the arguments of `Tuner.scale_batch_size`.

    Raises:
        ArgumentTypeError: For a value of the wrong type.
        ConfigurationError: For a value out of range.
    """

    mode: str = "power"
    steps_per_trial: int = 3
    init_val: int = 2
    max_trials: int = 25
    batch_arg_name: str = "batch_size"
    margin: float = 0.05
    max_val: int = 8192
    call: str = "Tuner.scale_batch_size"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigurationError(
                f"{self.call}(mode={self.mode!r}) is unknown. The batch size is doubled until memory runs out"
                " ('power'), or the limit is found exactly by bisecting ('binsearch'). Pass one of these two."
            )
        for name in ("steps_per_trial", "init_val", "max_trials", "max_val"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ArgumentTypeError(
                    f"{self.call}({name}={value!r}) is not an int. `{name}` counts, and nothing is converted silently."
                    f" Pass for example {name}={getattr(type(self), name)}."
                )
            if value < 1:
                raise ConfigurationError(
                    f"{self.call}({name}={value}) is below 1. Nothing could be tried."
                    f" Pass for example {name}={getattr(type(self), name)}."
                )
        if self.init_val > self.max_val:
            raise ConfigurationError(
                f"{self.call}(init_val={self.init_val}, max_val={self.max_val}) begins above its own maximum."
                " Sizes are tried from init_val up to max_val. Pass a smaller init_val, or a larger max_val."
            )
        if not 0 <= self.margin < 1:
            raise ConfigurationError(
                f"{self.call}(margin={self.margin!r}) is no part of a batch size. The size that mode='binsearch' finds"
                " is made smaller by this part, to be safe. Pass a number from 0 up to, but below, 1, such as 0.05."
            )


def find_batch_size_attribute(options: BatchSizeOptions, module: Any, data: RunData) -> TunedAttribute:
    """What to tune, and that it can have an effect.

    Raises:
        NoSuchAttributeError: If there is no such attribute.
        ConfigurationError: If the loaders were passed ready-made.
    """
    for source in data.sources.values():
        if source.value is not None:
            raise loaders_were_passed(options.call)
    names = [options.batch_arg_name]
    return find_attribute(names, module, data.datamodule, call=options.call, argument="batch_arg_name")


def loaders_were_passed(call: str) -> ConfigurationError:
    """The error for loaders whose batch size is fixed."""
    return ConfigurationError(
        f"{call} was given loaders. The batch size of a loader that is there cannot be changed: it must be made anew"
        " for each trial. Define train_dataloader() (val_, test_, predict_) in the module or a datamodule, with"
        " batch_size=self.batch_size, and pass no loaders."
    )


class BatchSizeTrials:
    """The sizes that were tried.

    Attributes:
        results: "batch_size": every size, in the order of the trials; "fits": did it fit into memory?
        margin: What `suggestion` leaves free unless told otherwise.
    """

    def __init__(self, search: BatchSizeSearch, margin: float) -> None:
        self.results: dict[str, list[Any]] = {
            "batch_size": [size for size, _ in search.trials],
            "fits": [fits for _, fits in search.trials],
        }
        self.margin = margin
        self._search = search

    def suggestion(self, margin: float | None = None) -> int:
        """The size that was found.

        Args:
            margin: Stay below the limit by this part, if mode="binsearch" met one; None: by `self.margin`.
        """
        found = self._search.result(self.margin if margin is None else margin)
        assert found is not None, "a search in which nothing fits ends with an error"
        return found

    def plot(self, suggest: bool = False, show: bool = False, ax: "Axes | None" = None) -> Any:
        """Draw the sizes in the order of the trials. Needs matplotlib.

        Args:
            suggest: Mark the suggested size?
            show: Open a window?
            ax: Draw here; None makes a new figure.

        Returns:
            The matplotlib figure.

        Raises:
            MissingPackageError: If matplotlib is not installed.
        """
        from fulmen.tuner.batch_size_plot import draw_trials

        sizes, fits = self.results["batch_size"], self.results["fits"]
        return draw_trials(sizes, fits, self.suggestion() if suggest else None, show=show, ax=ax)


def search_batch_size(options: BatchSizeOptions, trainer: Trainer) -> BatchSizeTrials:
    """Find the largest batch size that runs, in the middle of a run; afterwards that run is as before.

    Several processes find the same size: the largest that fits into the memory of each.

    Returns:
        What was tried, and the size that was found.

    Raises:
        ConfigurationError: If not even one sample fits, or the loaders do not follow the attribute.
        ProcessFailedError: If a trial failed in another process.
    """
    attribute = find_batch_size_attribute(options, trainer.lightning_module, trainer.context.data)
    search = BatchSizeSearch(
        options.init_val, options.max_val, bisects=options.mode == "binsearch", max_trials=options.max_trials
    )
    loaders = _Loaders(options, attribute)
    while (size := search.next_size) is not None:
        answers = _try_everywhere(size, options, attribute, trainer, loaders)
        full = [rank for rank, answer in enumerate(answers) if not answer.fits]
        where = f" on rank {', '.join(map(str, full))}" if len(answers) > 1 else ""
        rank_zero_info(f"Batch size {size} {f'does not fit: memory ran out{where}' if full else 'fits'}.")
        search = search.after(size, fits=not full)
        counted = [answer.num_samples for answer in answers if answer.num_samples is not None]
        if len(counted) == len(answers):
            search = search.below(max(counted))
    if search.result() is None:
        tried = "a single sample" if search.fails == 1 else f"a batch of {search.fails}"
        raise ConfigurationError(
            f"{options.call} found no batch size: memory runs out for {tried} too, after {search.num_trials} trials."
            " What fills it is the model, or something beside this program."
            " Use a smaller model or a lower precision, a smaller init_val, or more trials (max_trials)."
        )
    return BatchSizeTrials(search, options.margin)


@dataclass(frozen=True)
class _Answer:
    """How a trial ended in one process.

    Attributes:
        fits: Was there memory enough?
        num_samples: Of the data of this process; None if nobody knows.
        error: What else went wrong, in words.
    """

    fits: bool
    num_samples: int | None = None
    error: str = ""


def _try_everywhere(
    size: int, options: BatchSizeOptions, attribute: TunedAttribute, trainer: Trainer, loaders: "_Loaders"
) -> list[_Answer]:
    """Make the trial in every process. Returns how it ended in each, by rank.

    Processes make it alone: where memory runs out in one of them, the others would wait for it in a collective that
    it never reaches.
    """
    alone = trainer.world_size > 1
    if alone:
        trainer.context.signals.begin_next()  # here, where all processes are equally far
    failure: Exception | None = None
    fits = False
    try:
        fits = _fits(size, options, attribute, trainer, loaders, alone=alone)
    except Exception as error:
        if not alone:
            raise
        failure = error
    if not fits or trainer.strategy.root_device.type != "cpu":
        # The parts of a trial refer to each other in circles, and so would stay for a while.
        release_memory()
    mine = _Answer(fits, loaders.num_samples, f"{type(failure).__name__}: {failure}" if failure is not None else "")
    if not alone:
        return [mine]
    answers = trainer.strategy.gather_objects(mine)
    if failure is not None:
        raise failure
    for rank, answer in enumerate(answers):
        if answer.error:
            raise ProcessFailedError(
                f"{options.call} ends because the trial of batch size {size} failed on rank {rank}, with"
                f" {answer.error.rstrip('.')}. The processes decide together. Look at the error of that process."
            )
    return answers


def _fits(
    size: int,
    options: BatchSizeOptions,
    attribute: TunedAttribute,
    trainer: Trainer,
    loaders: "_Loaders",
    *,
    alone: bool,
) -> bool:
    entry = trainer.state.fn
    assert entry is not None
    changes = _changes(entry, options, trainer)
    try:
        with rehearsing(trainer, first=partial(attribute.write, size), alone=alone, **changes) as trial:
            fits = _runs(trial, entry)
            loaders.look_at(trial.context.data.prepared.get(STAGES[entry]), size)
    except Exception as error:
        if not is_out_of_memory(error):  # it may run out while loaders and optimizers are made
            raise
        return False
    return fits


def _runs(trial: Trainer, entry: EntryPoint) -> bool:
    run = {
        EntryPoint.FIT: trial.fit_loop.run,
        EntryPoint.VALIDATE: trial.validate_loop.run,
        EntryPoint.TEST: trial.test_loop.run,
        EntryPoint.PREDICT: trial.predict_loop.run,
    }[entry]
    try:
        with suppress(StopRun):  # the module has enough of the trial, not of the run around it
            run()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _changes(entry: EntryPoint, options: BatchSizeOptions, trainer: Trainer) -> dict[str, Any]:
    """The settings of a trial: so many steps, and what belongs to them."""
    steps = options.steps_per_trial
    if entry is not EntryPoint.FIT:
        return {f"limit_{STAGES[entry].dataloader_prefix}_batches": steps}
    return {
        "max_steps": steps,
        "max_epochs": steps,  # of a batch each, if the data are few
        "min_steps": None,
        "min_epochs": None,
        "limit_train_batches": steps,
        # Validation comes after these steps and needs memory too.
        "limit_val_batches": steps if trainer.limit_val_batches else 0,
        "val_check_interval": 1.0,
        "val_check_time": None,
        "check_val_every_n_epoch": 1,
        "log_every_n_steps": 0,
    }


class _Loaders:
    """What the loaders of the trials tell: do they follow the attribute, and how many samples are there?"""

    def __init__(self, options: BatchSizeOptions, attribute: TunedAttribute) -> None:
        self.num_samples: int | None = None
        self._call = options.call
        self._name = attribute.name
        self._seen: tuple[int, list[Any]] | None = None

    def look_at(self, prepared: PreparedLoaders | None, size: int) -> None:
        if prepared is None:
            return
        sizes = [getattr(view, "batch_size", None) for view in prepared.views]
        if not any(isinstance(found, int) for found in sizes):
            raise ConfigurationError(
                f"{self._call} met loaders without a batch size. They batch in a way of their own (batch_sampler=,"
                f" batch_size=None, or no DataLoader), so that {self._name!r} may change nothing."
                f" Build them as DataLoader(..., batch_size=self.{self._name})."
            )
        if self._seen is not None and self._seen[0] != size and self._seen[1] == sizes:
            raise ConfigurationError(
                f"{self._call} changed {self._name!r} from {self._seen[0]} to {size}, and the batches stayed at"
                f" {sizes[0]} samples. The loaders do not read it."
                f" Build them as DataLoader(..., batch_size=self.{self._name}), or name what they read with"
                " batch_arg_name='...'."
            )
        self._seen = size, sizes
        shares = [_num_samples(view) for view in prepared.views]
        known = [share for share in shares if share is not None]
        self.num_samples = max(known) if len(known) == len(shares) else None


def _num_samples(view: ResumableLoader) -> int | None:
    """Of the part of the data that this process gets."""
    length = sized_len(getattr(view, "dataset", None))
    return None if length is None else math.ceil(length / view.world_size)
