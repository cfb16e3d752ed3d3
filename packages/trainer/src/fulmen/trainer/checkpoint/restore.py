"""A checkpoint back into the run, in the two moments in which its parts are wanted.

`restore_weights` runs before the model is wrapped and the optimizers are made, `restore_training` after.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fulmen.fabric.class_names import class_name
from fulmen.fabric.rank_zero import warn_once
from fulmen.fabric.seeding import restore_rng_state
from fulmen.trainer.checkpoint.buffers import put_back_buffers
from fulmen.trainer.checkpoint.dump import FULMEN_KEY
from fulmen.trainer.errors import CheckpointError, MisconfigurationException
from fulmen.trainer.hooks.table import Listener
from fulmen.trainer.run.context import RunContext

Checkpoint = dict[str, Any]


class WeightsDoNotFitError(CheckpointError, MisconfigurationException):
    """The module has other parameters, or parameters of another shape."""


def read(run: RunContext, path: str, *, weights_only: bool | None = None) -> Checkpoint:
    """The checkpoint at `path`, in the current form.

    Raises:
        CheckpointNotFoundError: If there is none.
        CheckpointDamagedError: If it is incomplete.
        CheckpointError: If it holds something else.
    """
    loaded = run.strategy.load_checkpoint(path, weights_only=weights_only)
    if not isinstance(loaded, Mapping) or "state_dict" not in loaded:
        raise CheckpointError(
            f"ckpt_path={path!r} holds no checkpoint of a run: the key 'state_dict' is missing."
            " It may be a bare state dict, or belong to another program."
            " Load it yourself with torch.load and module.load_state_dict, and fit without ckpt_path."
        )
    from fulmen.trainer.checkpoint.migrate import migrate_checkpoint

    checkpoint, _ = migrate_checkpoint(dict(loaded))
    return checkpoint


def restore_weights(run: RunContext, checkpoint: Checkpoint) -> None:
    """Give module, datamodule and callbacks back what they saved."""
    strategy, hooks, datamodule = run.strategy, run.hooks, run.data.datamodule
    module = strategy.lightning_module
    assert module is not None
    if strategy.precision_plugin.precision == "64-true" and not strategy.restore_checkpoint_after_setup:
        strategy.precision_plugin.convert_module(module)  # still in float32, it would round what it is given
    hooks.fire_group(Listener.MODULE, "on_load_checkpoint", checkpoint)
    try:
        strategy.load_model_state_dict(checkpoint, strict=module.strict_loading)
    except RuntimeError as error:
        raise WeightsDoNotFitError(
            f"The weights of `ckpt_path` do not fit {class_name(module)}. {_gist(error)}."
            " The checkpoint was saved by another module, or by an older form of this one."
            " Build the module as it was then; strict_loading=False on it leaves out what only one of the two has."
        ) from error
    if datamodule is not None:
        state = checkpoint.get(type(datamodule).__qualname__)
        if state is not None:
            datamodule.load_state_dict(state)
    hooks.fire_group(Listener.CALLBACKS, "on_load_checkpoint", checkpoint)
    _restore_callbacks(run, checkpoint.get("callbacks"))


def _gist(error: RuntimeError) -> str:
    """What torch says, on one line, without the class that the user knows."""
    lines = [line.strip().rstrip(". ") for line in str(error).splitlines()]
    found = [line for line in lines if line and not line.startswith("Error(s) in loading")]
    return "; ".join(found[:3] or lines[:1])[:300]


def _restore_callbacks(run: RunContext, states: Mapping[str, Any] | None) -> None:
    if not states:
        return
    present = {callback.state_key: callback for callback in run.hooks.callbacks}
    missing = sorted(set(states) - set(present))
    if missing:
        warn_once(
            f"The checkpoint holds the state of callbacks that this Trainer does not have: {missing}."
            " What they knew is not restored. Pass the same callbacks to the Trainer to go on exactly."
        )
    for key, callback in present.items():
        if key in states:
            callback.load_state_dict(states[key])


def restore_training(run: RunContext, checkpoint: Checkpoint, load_loops: Callable[[Mapping[str, Any]], None]) -> None:
    """Give loops, optimizers, schedulers and precision back what they saved.

    Args:
        run: The run, with its optimizers.
        checkpoint: From `read`.
        load_loops: Takes the saved form of the loops.

    Raises:
        CheckpointError: If the checkpoint holds weights only, or other optimizers.
    """
    strategy = run.strategy
    if "optimizer_states" not in checkpoint or "lr_schedulers" not in checkpoint:
        raise CheckpointError(
            "The checkpoint of `ckpt_path` holds no state of optimizers and schedulers: it was saved with weights only."
            " A fit cannot go on exactly from weights."
            " Load them with load_from_checkpoint and fit without ckpt_path, or save with save_weights_only=False."
        )
    put_back_buffers(run, own_state(checkpoint).get("buffers"))
    precision = strategy.precision_plugin
    if state := checkpoint.get(type(precision).__qualname__):
        precision.load_state_dict(state)
    if "loops" in checkpoint:
        try:
            load_loops(checkpoint["loops"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The checkpoint of `ckpt_path` holds no position of a fit: {type(error).__name__}: {error}."
                " Where the run was cannot be known."
                " Fit from another checkpoint, or load the weights alone with load_from_checkpoint."
            ) from error
    _check_count("optimizers", len(checkpoint["optimizer_states"]), len(strategy.optimizers))
    strategy.load_optimizer_state_dict(checkpoint)
    configs = strategy.lr_scheduler_configs
    _check_count("LR schedulers", len(checkpoint["lr_schedulers"]), len(configs))
    for config, state in zip(configs, checkpoint["lr_schedulers"], strict=True):
        config.scheduler.load_state_dict(state)


def _check_count(what: str, saved: int, present: int) -> None:
    if saved != present:
        raise CheckpointError(
            f"The checkpoint of `ckpt_path` holds the state of {saved} {what}; configure_optimizers() made {present}."
            " Which state belongs to which cannot be known."
            " Make as many as when it was saved, or load the weights alone with load_from_checkpoint."
        )


def own_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """What only our checkpoints hold: "rng", "data" and "metrics"; empty for others'.

    Of a fit that has ended inside an epoch, the metrics are those of that epoch: it goes on.
    """
    state: dict[str, Any] = checkpoint.get(FULMEN_KEY, {})
    cut = state.get("cut")
    return {**state, "metrics": cut["metrics"]} if cut else state


def restore_rng(run: RunContext, state: Mapping[str, Any]) -> None:
    """Put random numbers back to where they were, if as many processes run as when they were saved."""
    states = state.get("rng") or []
    if len(states) == run.strategy.world_size:
        restore_rng_state(states[run.strategy.global_rank])
