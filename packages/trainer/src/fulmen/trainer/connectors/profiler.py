"""The profiler flag to a profiler."""

from collections.abc import Callable

from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.profilers.base import PassThroughProfiler, Profiler
from fulmen.trainer.run.settings import barebones_conflict


def _simple() -> Profiler:
    from fulmen.trainer.profilers.simple import SimpleProfiler

    return SimpleProfiler()


def _advanced() -> Profiler:
    from fulmen.trainer.profilers.advanced import AdvancedProfiler

    return AdvancedProfiler()


def _pytorch() -> Profiler:
    from fulmen.trainer.profilers.pytorch import PyTorchProfiler

    return PyTorchProfiler()


def _xla() -> Profiler:
    from fulmen.trainer.profilers.xla import XLAProfiler

    return XLAProfiler()


_BY_NAME: dict[str, Callable[[], Profiler]] = {
    "simple": _simple,
    "advanced": _advanced,
    "pytorch": _pytorch,
    "xla": _xla,
}


def choose_profiler(profiler: Profiler | str | None, *, barebones: bool = False) -> Profiler:
    """The profiler that the flag names; None times nothing.

    Raises:
        ConfigurationError: For an unknown name, and for any profiler in barebones mode.
        ArgumentTypeError: For anything that is no profiler.
    """
    if profiler is None:
        return PassThroughProfiler()
    if barebones:
        raise barebones_conflict("profiler", profiler)
    if isinstance(profiler, Profiler):
        return profiler
    if isinstance(profiler, type):
        raise ArgumentTypeError(
            f"Trainer(profiler={profiler.__name__}) is a class, not an object. A run is timed by a Profiler object or"
            f" by one chosen by name. Pass {profiler.__name__}(...)."
        )
    if not isinstance(profiler, str):
        raise ArgumentTypeError(
            f"Trainer(profiler={profiler!r}) is a {type(profiler).__name__}."
            " A run is timed by a Profiler object or by one chosen by name."
            f" Pass one of {sorted(_BY_NAME)}, a Profiler, or None."
        )
    if profiler not in _BY_NAME:
        raise ConfigurationError(
            f"Trainer(profiler={profiler!r}) is unknown."
            f" The names are {', '.join(map(repr, sorted(_BY_NAME)))}. Pass one of them, or a Profiler object."
        )
    return _BY_NAME[profiler]()
