"""Try batch sizes until memory runs out."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from fulmen.fabric.accelerators.out_of_memory import is_out_of_memory, release_memory
from fulmen.fabric.data.length import sized_len
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.rank_zero import rank_zero_info
from fulmen.trainer.data.sources import PreparedLoaders, RunData
from fulmen.trainer.rehearsal import rehearsing
from fulmen.trainer.stages import EntryPoint, Stage
from fulmen.trainer.trainer import Trainer
from fulmen.tuner.attributes import TunedAttribute, find_attribute
from fulmen.tuner.batch_size_search import BatchSizeSearch

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
                " ('power'), and then perhaps bisected ('binsearch'). Pass one of these two."
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


def search_batch_size(options: BatchSizeOptions, trainer: Trainer) -> int:
    """Find the largest batch size that runs, in the middle of a run; afterwards that run is as before.

    Raises:
        ConfigurationError: If not even one sample fits, or the loaders do not follow the attribute.
    """
    entry, module = trainer.state.fn, trainer.lightning_module
    assert entry is not None
    assert module is not None
    if trainer.world_size > 1:
        raise ConfigurationError(
            f"{options.call} was called with Trainer(devices={trainer.num_devices}), in {trainer.world_size} processes."
            " When one of them runs out of memory, the others would wait for it. Find the size with Trainer(devices=1):"
            " it holds for each process."
        )
    attribute = find_batch_size_attribute(options, module, trainer.context.data)
    search = BatchSizeSearch(
        options.init_val, options.max_val, bisects=options.mode == "binsearch", max_trials=options.max_trials
    )
    loaders = _Loaders(options, attribute)
    while (size := search.next_size) is not None:
        fits = _fits(size, options, attribute, trainer, loaders)
        if not fits or trainer.strategy.root_device.type != "cpu":
            # The parts of a trial refer to each other in circles, and so would stay for a while.
            release_memory()
        rank_zero_info(f"Batch size {size} {'fits' if fits else 'does not fit: memory ran out'}.")
        search = search.after(size, fits=fits)
        if loaders.num_samples is not None:
            search = search.below(loaders.num_samples)
    found = search.result(options.margin)
    if found is None:
        tried = "a single sample" if search.fails == 1 else f"a batch of {search.fails}"
        raise ConfigurationError(
            f"{options.call} found no batch size: memory runs out for {tried} too, after {search.num_trials} trials."
            " What fills it is the model, or something beside this program."
            " Use a smaller model or a lower precision, a smaller init_val, or more trials (max_trials)."
        )
    return found


def _fits(
    size: int, options: BatchSizeOptions, attribute: TunedAttribute, trainer: Trainer, loaders: "_Loaders"
) -> bool:
    entry = trainer.state.fn
    assert entry is not None
    with rehearsing(trainer, first=partial(attribute.write, size), **_changes(entry, options, trainer)) as trial:
        run = {
            EntryPoint.FIT: trial.fit_loop.run,
            EntryPoint.VALIDATE: trial.validate_loop.run,
            EntryPoint.TEST: trial.test_loop.run,
            EntryPoint.PREDICT: trial.predict_loop.run,
        }[entry]
        try:
            run()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        else:
            fits = True
        loaders.look_at(trial.context.data.prepared.get(STAGES[entry]), size)
    return fits


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
        lengths = [sized_len(getattr(view, "dataset", None)) for view in prepared.views]
        known = [length for length in lengths if length is not None]
        self.num_samples = max(known) if len(known) == len(lengths) else None
