"""The run as a dict: the content of a checkpoint.

The keys, and their order, are the reference's, so that either side can load the other's. What only we know stands under
one key of its own, `fulmen`, which others ignore.
"""

from collections.abc import Mapping
from typing import Any

from fulmen.fabric.seeding import collect_rng_state, run_seed
from fulmen.trainer.checkpoint.buffers import own_buffers
from fulmen.trainer.checkpoint.position import FitPosition
from fulmen.trainer.core.hparams import hyperparameter_entries
from fulmen.trainer.format_version import FORMAT_VERSION, VERSION_KEY
from fulmen.trainer.hooks.table import Listener
from fulmen.trainer.run.context import RunContext
from fulmen.trainer.stages import Stage

FULMEN_KEY = "fulmen"
FULMEN_FORM = 1


def dump(
    run: RunContext,
    *,
    loops: Mapping[str, Any],
    epoch: int,
    global_step: int,
    weights_only: bool = False,
    position: FitPosition | None = None,
) -> dict[str, Any]:
    """Everything from which the run can go on.

    Args:
        run: The run.
        loops: The saved form of each loop, by name.
        epoch, global_step: Epochs and optimizer steps done.
        weights_only: Leave out optimizers, schedulers and callbacks.
        position: Where the fit is, as far as `loops` does not say it.
    """
    strategy, hooks = run.strategy, run.hooks
    module, datamodule = strategy.lightning_module, run.data.datamodule
    assert module is not None
    checkpoint: dict[str, Any] = {
        "epoch": epoch,
        "global_step": global_step,
        VERSION_KEY: FORMAT_VERSION,
        "state_dict": strategy.lightning_module_state_dict(),
        "loops": dict(loops),
    }
    if not weights_only:
        checkpoint["callbacks"] = callback_states(run)
        checkpoint["optimizer_states"] = [strategy.optimizer_state(optimizer) for optimizer in strategy.optimizers]
        checkpoint["lr_schedulers"] = [_plain_state(config.scheduler) for config in strategy.lr_scheduler_configs]
        precision = strategy.precision_plugin
        if state := precision.state_dict():
            checkpoint[type(precision).__qualname__] = state
        checkpoint[FULMEN_KEY] = _own_state(run, position or FitPosition())
    for owner in (module, datamodule):
        if owner is not None:
            checkpoint.update(hyperparameter_entries(owner))
    if datamodule is not None and (state := datamodule.state_dict()):
        checkpoint[type(datamodule).__qualname__] = state
    hooks.fire_group(Listener.CALLBACKS, "on_save_weights" if weights_only else "on_save_checkpoint", checkpoint)
    hooks.fire_group(Listener.MODULE, "on_save_checkpoint", checkpoint)
    return checkpoint


def callback_states(run: RunContext) -> dict[str, Any]:
    """The state of every callback that has one, by its key."""
    states = {}
    for callback in run.hooks.callbacks:
        if state := callback.state_dict():
            states[callback.state_key] = state
    return states


def _own_state(run: RunContext, position: FitPosition) -> dict[str, Any]:
    """What the reference does not keep: random numbers, the place in the data, sums of metrics and gradients."""
    prepared = run.data.prepared.get(Stage.TRAIN)
    validation, cut = position.validation, position.cut
    return {
        "form": FULMEN_FORM,
        "world_size": run.strategy.world_size,
        "seed": run_seed() if run.data.seed is None else run.data.seed,
        "buffers": own_buffers(run),
        "rng": run.strategy.gather_objects(validation.rng or collect_rng_state()),
        # Of each process that sees other data how far they were read, and its sums.
        "data": run.strategy.gather_different(prepared.state_dict()) if prepared is not None else None,
        "metrics": run.strategy.gather_different(run.metrics.state_dict()),
        "validation": {
            "seen_of": list(validation.seen_of),
            "under_way": validation.is_under_way,
            "data": None if validation.data is None else run.strategy.gather_different(dict(validation.data)),
        },
        "since_validation_s": position.since_validation_s,
        "owed": position.owed,
        "gradients": position.gradients,
        "cut": None
        if cut is None
        else {"fit_loop": dict(cut.fit_loop), "metrics": run.strategy.gather_objects(cut.metrics)},
    }


def _plain_state(scheduler: Any) -> dict[str, Any]:
    """Without the function by which torch 2.9's SWALR anneals; the one that loads the state has its own."""
    state: dict[str, Any] = scheduler.state_dict()
    return {key: value for key, value in state.items() if key != "anneal_func"} if "anneal_func" in state else state
