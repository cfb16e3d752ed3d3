"""Every flag of a run with its default, checked in one place.

`Trainer` passes its arguments on to `Settings` and reads them from it; the loops see only `Settings`. Flags that people
change while a run goes on (`accumulate_grad_batches`, the limits) are read again where they matter.
"""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError, MisconfigurationException

_SWITCHES = (
    "inference_mode",
    "use_distributed_sampler",
    "detect_anomaly",
    "barebones",
    "sync_batchnorm",
    "enable_autolog_hparams",
)
_HINTS = {
    "max_steps": "max_steps=100, or max_steps=-1 for no limit",
    "accumulate_grad_batches": "accumulate_grad_batches=4; a schedule is a GradientAccumulationScheduler callback",
}
INTERVAL_FORMS = "an int, a float between 0.0 and 1.0, a timedelta, 'DD:HH:MM:SS' or a dict such as {'minutes': 30}"


@dataclass(slots=True)
class Settings:
    """The flags of one Trainer; meanings and defaults as `Trainer` documents them.

    Raises:
        ArgumentTypeError: For a value of the wrong type.
        ConfigurationError: For a value out of range, or two that contradict each other.
    """

    max_epochs: int | None = None
    min_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    max_time: str | timedelta | Mapping[str, int] | None = None
    fast_dev_run: int | bool = False
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    limit_test_batches: int | float | None = None
    limit_predict_batches: int | float | None = None
    overfit_batches: int | float = 0.0
    val_check_interval: int | float | str | timedelta | Mapping[str, int] | None = None
    check_val_every_n_epoch: int | None = 1
    num_sanity_val_steps: int | None = None
    log_every_n_steps: int | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: int | float | None = None
    gradient_clip_algorithm: str | None = None
    deterministic: bool | str | None = None
    benchmark: bool | None = None
    inference_mode: bool = True
    use_distributed_sampler: bool = True
    detect_anomaly: bool = False
    barebones: bool = False
    sync_batchnorm: bool = False
    reload_dataloaders_every_n_epochs: int = 0
    enable_autolog_hparams: bool = True
    default_root_dir: str = "."
    val_check_time: timedelta | None = field(default=None, init=False)  # the time form of val_check_interval
    epochs_are_assumed: bool = field(default=False, init=False)  # did nobody say when a fit ends?

    def __post_init__(self) -> None:
        self._check_types()
        self._check_ranges()
        self._check_agreement()
        self._fill_in()

    def change(self, name: str, value: Any) -> None:
        """Give a flag another value while the Trainer exists; one that is wrong is refused, and the old one stays.

        Raises:
            ArgumentTypeError, ConfigurationError: As when the Trainer is built.
        """
        before = {kept: getattr(self, kept) for kept in (name, "val_check_interval", "val_check_time")}
        setattr(self, name, value)
        try:
            self._check_types()
            self._check_ranges()
            self.epochs_are_assumed &= name != "max_epochs"
            if name == "val_check_interval":
                self.val_check_time = None
                self._read_val_check_interval()
        except MisconfigurationException:
            for kept, old in before.items():
                setattr(self, kept, old)
            raise

    # Which forms are right

    def _check_types(self) -> None:
        for name in ("max_epochs", "min_epochs", "min_steps", "num_sanity_val_steps", "log_every_n_steps"):
            _require_int(name, getattr(self, name), optional=True)
        for name, hint in _HINTS.items():
            _require_int(name, getattr(self, name), hint=hint)
        for name in ("reload_dataloaders_every_n_epochs", "check_val_every_n_epoch"):
            _require_int(name, getattr(self, name), optional=name.startswith("check"), error=ConfigurationError)
        if not isinstance(self.fast_dev_run, int):
            raise ArgumentTypeError(
                f"Trainer(fast_dev_run={self.fast_dev_run!r}) is neither a bool nor an int."
                " It says whether, or for how many batches, a quick check of the whole program runs."
                " Pass True, or a number of batches such as fast_dev_run=7."
            )
        for name in _SWITCHES:
            require_switch(name, getattr(self, name))
        require_switch("benchmark", self.benchmark, optional=True)
        if self.deterministic not in (None, True, False, "warn"):
            raise ConfigurationError(
                f"Trainer(deterministic={self.deterministic!r}) is unknown."
                " It chooses between deterministic algorithms, a warning where there is none, and neither."
                " Pass True, False or 'warn'."
            )
        clip = self.gradient_clip_val
        if clip is not None and (isinstance(clip, bool) or not isinstance(clip, (int, float))):
            raise ArgumentTypeError(
                f"Trainer(gradient_clip_val={clip!r}) is not a number."
                " It bounds the norm or the values of the gradients. Pass a positive number such as 1.0, or None."
            )

    def _check_ranges(self) -> None:
        for name in ("max_epochs", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < -1:
                raise ConfigurationError(
                    f"Trainer({name}={value}) is below -1."
                    f" `{name}` counts, and -1 is the word for 'no limit'. Pass -1, 0 or a positive int."
                )
        for name in ("min_epochs", "min_steps"):
            _require_at_least(name, getattr(self, name), 0)
        _require_at_least("fast_dev_run", int(self.fast_dev_run), 0)
        _require_at_least("accumulate_grad_batches", self.accumulate_grad_batches, 1)
        _require_at_least("num_sanity_val_steps", self.num_sanity_val_steps, -1)
        _require_at_least("log_every_n_steps", self.log_every_n_steps, 0)
        _require_at_least("check_val_every_n_epoch", self.check_val_every_n_epoch, 1)
        _require_at_least("reload_dataloaders_every_n_epochs", self.reload_dataloaders_every_n_epochs, 0)
        _require_at_least("gradient_clip_val", self.gradient_clip_val, 0)
        for name in ("train", "val", "test", "predict"):
            _require_limit(f"limit_{name}_batches", getattr(self, f"limit_{name}_batches"))
        _require_limit("overfit_batches", self.overfit_batches)
        if self.gradient_clip_algorithm not in (None, "norm", "value"):
            raise ConfigurationError(
                f"Trainer(gradient_clip_algorithm={self.gradient_clip_algorithm!r}) is unknown."
                " Gradients are clipped by their total norm or value by value."
                " Pass 'norm' or 'value'."
            )

    def _check_agreement(self) -> None:
        if self.min_epochs is not None and self.max_epochs not in (None, -1) and self.min_epochs > self.max_epochs:
            raise ConfigurationError(
                f"Trainer(min_epochs={self.min_epochs}, max_epochs={self.max_epochs}) cannot both hold."
                " A run cannot last longer than its maximum."
                f" Pass max_epochs={self.min_epochs} or more, or a smaller min_epochs."
            )
        if self.min_steps is not None and self.max_steps != -1 and self.min_steps > self.max_steps:
            raise ConfigurationError(
                f"Trainer(min_steps={self.min_steps}, max_steps={self.max_steps}) cannot both hold."
                " A run cannot last longer than its maximum."
                f" Pass max_steps={self.min_steps} or more, or a smaller min_steps."
            )
        if self.barebones:
            against = {
                "log_every_n_steps": self.log_every_n_steps not in (None, 0),
                "num_sanity_val_steps": self.num_sanity_val_steps not in (None, 0),
                "fast_dev_run": bool(self.fast_dev_run),
                "detect_anomaly": self.detect_anomaly,
            }
            for name, given in against.items():
                if given:
                    raise barebones_conflict(name, getattr(self, name))

    # What follows from the arguments

    def _fill_in(self) -> None:
        if self.max_time is not None:
            self.max_time = parse_duration("max_time", self.max_time, zero=True)
        self._read_val_check_interval()
        if self.max_epochs is None:
            # Without any other bound a run ends after 1,000 epochs.
            bounded = self.max_steps != -1 or self.max_time is not None
            self.max_epochs = -1 if bounded else 1000
            self.epochs_are_assumed = not bounded and not self.fast_dev_run
        if self.fast_dev_run:
            self._shorten(int(self.fast_dev_run))
        if self.overfit_batches and not self.fast_dev_run:
            self.limit_train_batches = self.overfit_batches
            self.limit_val_batches = self.overfit_batches
        if self.num_sanity_val_steps is None:
            self.num_sanity_val_steps = 0 if self.barebones else 2
        if self.log_every_n_steps is None:
            self.log_every_n_steps = 0 if self.barebones else 50
        for name in ("train", "val", "test", "predict"):
            if getattr(self, f"limit_{name}_batches") is None:
                setattr(self, f"limit_{name}_batches", 1.0)

    def _shorten(self, batches: int) -> None:
        """A quick check of everything: few batches, one epoch, no sanity check."""
        self.max_steps = batches
        self.max_epochs = 1
        self.val_check_interval = 1.0
        self.val_check_time = None
        self.check_val_every_n_epoch = 1
        self.num_sanity_val_steps = 0
        for name in ("train", "val", "test", "predict"):
            setattr(self, f"limit_{name}_batches", batches)

    def _read_val_check_interval(self) -> None:
        interval = self.val_check_interval
        if interval is None:
            self.val_check_interval = 1.0
        elif isinstance(interval, bool) or not isinstance(interval, (int, float, str, timedelta, Mapping)):
            raise ArgumentTypeError(
                f"Trainer(val_check_interval={interval!r}) has a type that says no interval."
                f" Validation runs after so many batches, that part of an epoch, or that much time."
                f" Pass {INTERVAL_FORMS}."
            )
        elif isinstance(interval, (str, timedelta, Mapping)):
            self.val_check_time = parse_duration("val_check_interval", interval)
        elif isinstance(interval, float) and not 0.0 < interval <= 1.0:
            raise ConfigurationError(
                f"Trainer(val_check_interval={interval}) is no part of an epoch."
                " A float says after which part of each epoch validation runs."
                " Pass a float above 0.0 and up to 1.0, or an int for a number of batches."
            )
        elif isinstance(interval, int) and interval < 1:
            raise ConfigurationError(
                f"Trainer(val_check_interval={interval}) is below 1."
                " An int says after how many training batches validation runs."
                " Pass 1 or more; to switch validation off pass limit_val_batches=0."
            )
        if self.check_val_every_n_epoch is None and isinstance(self.val_check_interval, float):
            raise ConfigurationError(
                f"Trainer(check_val_every_n_epoch=None, val_check_interval={self.val_check_interval}) has no meaning."
                " Without epochs to count, a part of an epoch is no interval."
                " Pass val_check_interval as a number of batches or as a duration."
            )


def root_folder(default_root_dir: str | os.PathLike[str] | None) -> str:
    """The folder for files that have no other place; None is the current one.

    Raises:
        ArgumentTypeError: If it is no path.
    """
    if default_root_dir is None:
        return os.getcwd()
    if not isinstance(default_root_dir, str | os.PathLike):
        raise ArgumentTypeError(
            f"Trainer(default_root_dir={default_root_dir!r}) is a {type(default_root_dir).__name__}, not a path."
            " Logs and checkpoints that have no other place go to this folder. Pass a str or a Path."
        )
    return os.fspath(default_root_dir)


def barebones_conflict(name: str, value: object) -> ConfigurationError:
    """The error for an option that barebones mode excludes."""
    return ConfigurationError(
        f"Trainer(barebones=True, {name}={value!r}) contradicts itself."
        f" Barebones mode switches off all that costs time beside the steps, `{name}` included."
        f" Remove `{name}`, or remove `barebones=True`."
    )


def parse_duration(name: str, value: Any, *, zero: bool = False) -> timedelta:
    """A duration given as timedelta, 'DD:HH:MM:SS' or keyword arguments of timedelta.

    Raises:
        ConfigurationError: If it cannot be read, is negative, or is nothing and `zero` does not allow that.
    """
    duration: timedelta | None = None
    # What timedelta itself refuses: unknown words, text, NaN, and more days than it can count.
    with suppress(TypeError, ValueError, OverflowError):
        if isinstance(value, timedelta):
            duration = value
        elif isinstance(value, Mapping):
            duration = timedelta(**value)
        elif isinstance(value, str) and re.fullmatch(r"\s*\d+:\d+:\d+:\d+\s*", value, re.ASCII):
            days, hours, minutes, seconds = map(int, value.split(":"))
            duration = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if duration is None:
        raise ConfigurationError(
            f"Trainer({name}={value!r}) is no duration."
            " Text is read as days:hours:minutes:seconds, a dict as the arguments of datetime.timedelta."
            f" Pass for example {name}='00:12:00:00' or {name}={{'hours': 12}}."
        )
    if duration < timedelta(0) or not (zero or duration):
        raise ConfigurationError(
            f"Trainer({name}={value!r}) is not a {'duration' if zero else 'positive duration'}."
            " Time does not run backwards, and an interval of no length would be over at every moment."
            f" Pass a duration {'of zero or more' if zero else 'above zero'}, or leave it out."
        )
    return duration


def require_switch(name: str, value: object, *, optional: bool = False) -> None:
    """Refuse what is neither True nor False; with `optional`, None too is right.

    Raises:
        ArgumentTypeError: Quoting the argument.
    """
    if isinstance(value, bool) or (value is None and optional):
        return
    raise ArgumentTypeError(
        f"Trainer({name}={value!r}) is {'neither a bool nor None' if optional else 'not a bool'}."
        f" `{name}` is a switch, and any other value could only be a mistake."
        f" Pass {name}=True or {name}=False."
    )


def _require_int(
    name: str,
    value: object,
    *,
    optional: bool = False,
    error: type[Exception] = ArgumentTypeError,
    hint: str | None = None,
) -> None:
    if (value is None and optional) or (isinstance(value, int) and not isinstance(value, bool)):
        return
    if isinstance(value, str) and value.strip().removeprefix("-").isdecimal():
        hint = f"{name}={value.strip()}"
    raise error(
        f"Trainer({name}={value!r}) is {'not an int' if not optional else 'neither an int nor None'}."
        f" `{name}` is a count, and nothing is converted silently. Pass for example {hint or f'{name}=1'}."
    )


def _require_at_least(name: str, value: int | float | None, low: int) -> None:
    # A NaN fails every comparison, so this asks for what is right.
    if value is not None and not value >= low:
        raise ConfigurationError(
            f"Trainer({name}={value}) is not {low} or more."
            f" Other values of `{name}` have no meaning. Pass {low} or more."
        )


def _require_limit(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(
            f"Trainer({name}={value!r}) is neither an int nor a float."
            " An int is a number of batches, a float a part of them. Pass for example"
            f" {name}=10 or {name}=0.5."
        )
    if not (value >= 0 and (isinstance(value, int) or value <= 1.0)):
        raise ConfigurationError(
            f"Trainer({name}={value}) is out of range."
            " An int is a number of batches and a float a part between 0.0 and 1.0 of them."
            f" Pass for example {name}=10 or {name}=0.5."
        )
