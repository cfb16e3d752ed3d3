"""What a user may want to know of a run before it begins. Nothing here is an error."""

from collections.abc import Iterable

from fulmen.fabric.class_names import class_name
from fulmen.fabric.rank_zero import PossibleUserWarning, rank_zero_info, rank_zero_warn, warn_once
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.run.settings import Settings
from fulmen.trainer.stages import EntryPoint


def tell_of_flags(settings: Settings) -> None:
    """What the flags of a new Trainer mean together."""
    if settings.benchmark and settings.deterministic:
        rank_zero_warn(
            "Trainer(benchmark=True, deterministic=...) asks for two things at once. cuDNN picks its algorithms by"
            " their speed on this machine, so runs may differ. Pass benchmark=False to have them repeat."
        )
    if settings.fast_dev_run:
        batches = int(settings.fast_dev_run)
        rank_zero_info(
            f"Trainer(fast_dev_run={settings.fast_dev_run!r}): every loop runs {batches} batch{'es' * (batches > 1)},"
            " for one epoch. Nothing is logged, and no checkpoint is saved."
        )
    if settings.barebones:
        rank_zero_info(
            "Trainer(barebones=True): checkpoints, loggers, progress bar, model summary, sanity check, profiler and"
            " everything that self.log records are off, so that only the steps themselves cost time."
        )


def tell_of_run(settings: Settings, entry: EntryPoint, module: LightningModule, callbacks: Iterable[Callback]) -> None:
    """What an entry point is about to do that may not be meant."""
    if entry is not EntryPoint.FIT:
        return
    if settings.epochs_are_assumed and not _has_timer(callbacks):
        warn_once(
            "Trainer(...) was given neither max_epochs nor max_steps. A fit must end some time, so it ends after"
            f" {settings.max_epochs} epochs. Pass max_epochs, or max_epochs=-1 to train without end.",
            category=PossibleUserWarning,
        )
    asleep = [name for name, part in module.named_modules() if name and not part.training]
    if asleep:
        shown = ", ".join(asleep[:3]) + (", ..." if len(asleep) > 3 else "")
        rank_zero_warn(
            f"Trainer.fit({class_name(module)}) begins with {len(asleep)} of its modules in eval mode: {shown}."
            " They stay so: dropout does nothing there, and batch norms do not learn."
            " Call model.train() before, unless these are frozen on purpose.",
            category=PossibleUserWarning,
        )


def _has_timer(callbacks: Iterable[Callback]) -> bool:
    from fulmen.trainer.callbacks.timer import Timer

    return any(isinstance(callback, Timer) for callback in callbacks)
