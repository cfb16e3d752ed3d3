"""Run in all processes of a strategy, and bring home what the first one found out."""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fulmen.fabric.ending import end_despite_pools
from fulmen.trainer.checkpoint.dump import callback_states
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.core.needs import COMPILED
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.metrics.outlets import asked
from fulmen.trainer.progress import legacy
from fulmen.trainer.properties import TrainerProperties
from fulmen.trainer.run.signals import end_on_ctrl_c, ending
from fulmen.trainer.stages import EntryPoint, Status


@dataclass
class Outcome:
    """What another process sends home: all that the user reads from Trainer and module after a run."""

    answer: Any
    fn: EntryPoint | None
    weights: dict[str, Any]
    status: Status
    should_stop: bool
    fit_counts: dict[str, Any]
    callbacks: dict[str, Any]
    shown: dict[str, Any]
    ckpt_path: str | Path | None


def launch(trainer: TrainerProperties, function: Callable[[], Any], module: LightningModule) -> Any:
    """Call `function` in every process that the strategy asks for.

    Processes that run the same program (script, torchrun) stay afterwards, each with its own Trainer. Those that were
    forked or spawned end; their first one's module, progress and metrics come home.
    """
    launcher = trainer.strategy.launcher
    if launcher is None:
        return function()
    from fulmen.fabric.launchers.spawn import SpawnLauncher

    if not isinstance(launcher, SpawnLauncher):
        return launcher.launch(function)
    if COMPILED in vars(module) and not launcher.is_interactive_compatible:
        raise ConfigurationError(
            f"Trainer(strategy=...) starts new Python processes, and {type(module).__name__} was compiled in this one."
            " What torch.compile made cannot be sent to them. Pass strategy='ddp' or 'ddp_fork', or compile the layers"
            " in configure_model()."
        )
    signals = trainer.context.signals
    for logger in trainer.loggers:
        _ = asked(logger, "version")  # taken here, it is the same in all processes, this one included
    try:
        # This process only waits: those that work hear of a signal through it, and end in good order.
        with signals.listening(pass_on=launcher.kill, only_starts=True):
            outcome = launcher.launch(_run_away, trainer, function, module)
    except BaseException as error:
        trainer.state.status = Status.INTERRUPTED
        if isinstance(error, KeyboardInterrupt) or signals.caught == signal.SIGINT:
            return end_on_ctrl_c()
        if signals.caught:
            end_despite_pools(128 + signals.caught)
            raise ending(signals.caught) from error
        raise
    return _come_home(trainer, module, outcome)


def _run_away(trainer: TrainerProperties, function: Callable[[], Any], module: LightningModule) -> Outcome | None:
    answer = function()
    if not trainer.is_global_zero:
        return None
    return Outcome(
        answer=answer,
        fn=trainer.state.fn,
        weights={name: tensor.detach().cpu() for name, tensor in module.state_dict().items()},
        status=trainer.state.status,
        should_stop=trainer.should_stop,
        fit_counts=legacy.write_fit(trainer.fit_loop.counts),
        callbacks=callback_states(trainer.context),
        shown=trainer.context.metrics.shown(),
        ckpt_path=trainer.ckpt_path,
    )


def _come_home(trainer: TrainerProperties, module: LightningModule, outcome: Outcome) -> Any:
    context = trainer.context
    context.strategy.connect(module)
    module.attach(trainer, context.metrics)
    module.load_state_dict(outcome.weights)
    context.state.fn, context.state.status = outcome.fn, outcome.status
    trainer.should_stop = outcome.should_stop
    legacy.read_fit(trainer.fit_loop.counts, outcome.fit_counts)
    for callback in trainer.callbacks:
        if callback.state_key in outcome.callbacks:
            callback.load_state_dict(outcome.callbacks[callback.state_key])
    context.metrics.show(outcome.shown)
    trainer.ckpt_path = outcome.ckpt_path
    return outcome.answer
