"""The base of all callbacks that save checkpoints."""

from fulmen.trainer.core.callback import Callback


class Checkpoint(Callback):
    """A callback that saves checkpoints. The trainer keeps all of them behind the other callbacks."""

    monitors_metrics = True
