"""The moments of a run that a strategy hears of; a subclass may listen."""

from typing import Any


class HearsTheRun:
    """Does nothing at any of them; a hook that is not overridden costs nothing."""

    def check_fit(self, module: Any, flags: Any) -> None:
        """A fit of `module` was asked for, and no process was started: refuse what cannot be done. For subclasses.

        Args:
            module: The user's.
            flags: The arguments of the Trainer, as attributes.
        """

    def check_train_loader(self, loader: Any, flags: Any) -> None:
        """As `check_fit`, of the loader that was passed for training.

        Args:
            loader: As the user passed it; None if a hook will make it.
            flags: The arguments of the Trainer, as attributes.
        """

    def on_train_start(self) -> None:
        """Training begins."""

    # Does the training step compute gradients too, of its loss divided by `loss_divisor`?
    derives_in_step: bool = False
    loss_divisor: int = 1

    def on_train_end(self) -> None:
        """Training has ended."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """A training batch begins."""

    def on_validation_start(self) -> None:
        """Validation begins."""

    def on_validation_end(self) -> None:
        """Validation has ended."""

    def on_test_start(self) -> None:
        """Testing begins."""

    def on_test_end(self) -> None:
        """Testing has ended."""

    def on_predict_start(self) -> None:
        """Predicting begins."""

    def on_predict_end(self) -> None:
        """Predicting has ended."""

    def on_trained_parameters_change(self) -> None:
        """`requires_grad` of parameters was switched: others are trained from here on."""

    def on_exception(self, exception: BaseException) -> None:
        """The run ends with `exception`; it is raised again afterwards."""
