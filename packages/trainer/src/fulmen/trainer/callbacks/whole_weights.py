"""What callbacks share that put an average in the place of the weights that were trained."""

from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.strategies.base import Strategy


class NeedsWholeWeights(Callback):
    """A callback that reads and writes whole parameters."""

    def check_strategy(self, strategy: Strategy) -> None:
        """Refuse a strategy that splits them. Asked before processes start, and again when the module is set up.

        Raises:
            ConfigurationError: Naming both.
        """
        if strategy.restore_checkpoint_after_setup:
            raise ConfigurationError(
                f"{type(self).__name__} cannot be used with {type(strategy).__name__}. No process has whole parameters"
                " there, and their average cannot be put in their place. Use a strategy that keeps the model whole, as"
                " 'ddp'."
            )
