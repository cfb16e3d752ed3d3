"""One run, from setup to teardown, in order; what happens on errors."""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fulmen.fabric.class_names import class_name
from fulmen.fabric.ending import end_despite_pools
from fulmen.fabric.rank_zero import rank_zero_info
from fulmen.trainer.checkpoint import restore
from fulmen.trainer.checkpoint.durable import settle
from fulmen.trainer.checkpoint.paths import NOTHING, Choice
from fulmen.trainer.checkpoint.whole import load_whole
from fulmen.trainer.connectors.callbacks import with_callbacks_of
from fulmen.trainer.connectors.data import prepare_data
from fulmen.trainer.core.hparams import INSTANTIATOR_KEY
from fulmen.trainer.core.loading import CLASS_PATH_KEY
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import InterruptedBySignal, MisconfigurationException, StopRun
from fulmen.trainer.hooks.table import Listener
from fulmen.trainer.metrics.merging import share_of, without_metrics
from fulmen.trainer.optimization.configure import offer_optimizers
from fulmen.trainer.run.context import RunContext
from fulmen.trainer.run.signals import end_on_ctrl_c, ending
from fulmen.trainer.stages import EntryPoint, Stage, Status

log = logging.getLogger(__name__)

_FIRST_STAGE = {
    EntryPoint.FIT: Stage.TRAIN,
    EntryPoint.VALIDATE: Stage.VALIDATE,
    EntryPoint.TEST: Stage.TEST,
    EntryPoint.PREDICT: Stage.PREDICT,
}


@dataclass(frozen=True)
class Plan:
    """What one call of an entry point is to do.

    Attributes:
        entry: Which entry point was called.
        module: The user's module.
        work: The loop, called when all is set up; its answer is the caller's.
        choice: The checkpoint to restore first, and what is taken in its place if it is damaged.
        weights_only: As for `torch.load`; None is True.
        load_loops: Takes the saved loops, and what only our checkpoints hold.
        save_stopped: Keeps what a signal has stopped.
        put_back: Puts the job back into the queue, where one of `also_hears` ended the run before it had begun.
        also_hears: Signals that stop the run beside the usual ones.
        log_dir: Says where reports go; asked in all processes.
        fetch: Brings a checkpoint that is elsewhere here, and says where it is then.
        take_note: Told which checkpoint the run is restored from; None if from none.
        asks_for_callbacks: Is the module asked for callbacks of its own? Not in a rehearsal.
    """

    entry: EntryPoint
    module: LightningModule
    work: Callable[[], Any]
    choice: Choice = NOTHING
    weights_only: bool | None = None
    load_loops: Callable[[Mapping[str, Any], dict[str, Any]], None] | None = None
    fetch: Callable[[str], str] | None = None
    take_note: Callable[[str | None], None] | None = None
    save_stopped: Callable[[], None] | None = None
    put_back: Callable[[], None] | None = None
    also_hears: tuple[int, ...] = ()
    log_dir: Callable[[], str | None] | None = None
    asks_for_callbacks: bool = True


def run(context: RunContext, plan: Plan) -> Any:
    """Set up, restore, run the loop, tear down; on errors, tell everybody and leave all as it was.

    Returns:
        What `plan.work` returned; None after Ctrl-C in a notebook.

    Raises:
        SystemExit: After a signal, or Ctrl-C outside a notebook, with the code that shells expect.
        BaseException: What user code raised.
    """
    state = context.state
    state.fn = plan.entry
    state.status = Status.RUNNING
    answer: Any = None
    try:
        launcher = context.strategy.launcher
        pass_on = launcher.kill if launcher is not None else None
        passing_on = context.signals.listening(pass_on, also=plan.also_hears)
        with passing_on, _global_settings(context), state.inside(_FIRST_STAGE[plan.entry]):
            answer = _run(context, plan)
            state.status = Status.FINISHED
    except InterruptedBySignal as error:
        end_despite_pools(128 + error.signum)
        raise
    except KeyboardInterrupt:
        end_on_ctrl_c()
    return answer


def _run(context: RunContext, plan: Plan) -> Any:
    answer: Any = None
    done = _Done()
    with ExitStack() as undo:
        try:
            try:
                with context.signals.setting_up(partial(_put_back, plan)):
                    _set_up(context, plan)
                undo.enter_context(torch.autograd.set_detect_anomaly(context.settings.detect_anomaly))
                answer = plan.work()
            except StopRun:
                log.info("The run was stopped in good order.")
            context.signals.finish()
            _end(context, plan, done)
        except BaseException as error:
            caught = context.signals.caught
            if caught and isinstance(error, Exception) and _is_consequence(error, context):
                interruption = ending(caught)
                context.signals.fail(interruption)
                _fail(context, plan, interruption, done)
                raise interruption from error
            blamed = context.signals.fail(error)
            _fail(context, plan, blamed or error, done)
            if blamed is not None:
                raise blamed from error
            raise
    return answer


def _set_up(context: RunContext, plan: Plan) -> None:
    """Everything before the loop, in the order that hooks rely on."""
    strategy, hooks, data, metrics = context.strategy, context.hooks, context.data, context.metrics
    module, entry = plan.module, plan.entry
    metrics.reset()
    strategy.connect(module)
    module.attach(hooks.trainer, metrics)  # type: ignore[arg-type]  # opaque here, the Trainer in fact
    if data.datamodule is not None:
        data.datamodule.trainer = hooks.trainer  # type: ignore[assignment]  # opaque here
    hooks.attach(module, data.datamodule, strategy)
    if plan.asks_for_callbacks:
        with hooks.inside("configure_optimizers"):  # nothing may be logged here either
            hooks.callbacks = with_callbacks_of(module, hooks.callbacks)
    hooks.compile()
    strategy.setup_environment()
    context.signals.stop_with_others(
        strategy.shared_store(),
        strategy.global_rank,
        strategy.world_size,
        ends_alone=strategy.is_started_by_others,
    )
    # Read before anything else is done: it may be damaged.
    path, checkpoint = _read(context, plan)
    if hooks.are_timed:
        hooks.profiling.setup(
            stage=entry,
            local_rank=strategy.local_rank if strategy.world_size > 1 else None,
            log_dir=plan.log_dir() if plan.log_dir is not None else None,
        )
    prepare_data(hooks, data, module, strategy)
    # Callbacks may read in `setup` where a tracker keeps this run.
    metrics.outlets.open(metrics.loggers, context.settings.default_root_dir)
    hooks.setup(stage=str(entry))
    strategy.barrier("setup")
    hooks.compile()  # callbacks may have come or gone in setup
    with strategy.tensor_init_context(), strategy.model_sharded_context():
        hooks.configure_model()
        hooks.configure_sharded_model()
    if checkpoint is not None and not strategy.restore_checkpoint_after_setup:
        rank_zero_info(f"Restoring from the checkpoint at {path}")
        restore.restore_weights(context, checkpoint)
    metrics.attach(strategy, strategy.root_device, is_global_zero=strategy.is_global_zero, module=module)
    offer_optimizers(context)
    strategy.setup(hooks.trainer)  # type: ignore[arg-type]  # opaque here, the Trainer in fact
    if checkpoint is not None and strategy.restore_checkpoint_after_setup:
        rank_zero_info(f"Restoring from the checkpoint at {path}")
        restore.restore_weights(context, checkpoint)
    if entry is EntryPoint.FIT:
        hooks.on_fit_start()
        hooks.compile()
    logs_hparams = context.settings.enable_autolog_hparams and metrics.loggers
    hparams = _hparams_to_log(module, data.datamodule) if logs_hparams else None
    metrics.outlets.introduce(metrics.loggers, hparams, module)
    if checkpoint is not None and entry is EntryPoint.FIT:
        own = restore.own_state(checkpoint)
        restore.restore_training(context, checkpoint, partial(_load_loops, plan, own))
        if own.get("metrics"):
            shared = share_of(own["metrics"], *strategy.own_values)
            metrics.load_state_dict(shared if strategy.updates_metrics else without_metrics(shared))
        checkpoint.clear()  # tensors that nobody needs any more
    strategy.barrier("run")


def _read(context: RunContext, plan: Plan) -> tuple[str | None, restore.Checkpoint | None]:
    """Where the checkpoint to restore is, and what is in it; the same in all processes."""
    path, choice = plan.choice.path, plan.choice
    checkpoint = None
    if path is None:
        return None, None
    if choice.asked is not None:
        fits, call = plan.entry is EntryPoint.FIT, f"Trainer.{plan.entry}"
        path, checkpoint = load_whole(context, choice, fits=fits, weights_only=plan.weights_only, call=call)
    else:
        path = plan.fetch(path) if plan.fetch is not None else path
        checkpoint = restore.read(context, path, weights_only=plan.weights_only)
    if plan.take_note is not None:
        plan.take_note(path)
    return path, checkpoint


def _load_loops(plan: Plan, own: dict[str, Any], loops: Mapping[str, Any]) -> None:
    if plan.load_loops is not None:
        plan.load_loops(loops, own)


def _hparams_to_log(module: LightningModule, datamodule: Any) -> Mapping[str, Any] | None:
    initial: dict[str, Any] = {}
    for owner in (module, datamodule):
        if owner is None or not owner.logs_hparams:
            continue
        # How the command line built it is no hyperparameter.
        own = {
            key: value for key, value in owner.hparams_initial.items() if key not in (CLASS_PATH_KEY, INSTANTIATOR_KEY)
        }
        differ = [name for name in own if name in initial and not _is_same(initial[name], own[name])]
        if differ:
            first, name = class_name(module), differ[0]
            raise MisconfigurationException(
                f"{first} and {type(owner).__name__} both have the hyperparameters {', '.join(map(repr, differ))}, with"
                f" different values: {name!r} is {initial[name]!r} and {own[name]!r}. Loggers get those of both as one."
                " Give one of them another name, or pass logger=False to one of the save_hyperparameters(...)."
            )
        initial.update(own)
    return initial or None


def _is_same(one: Any, other: Any) -> bool:
    """Are these equal? Tensors and arrays too, whose `==` gives many answers; what cannot be compared is not."""
    if one is other:
        return True
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and torch.equal(one, other)
    try:
        answer: Any = one == other
        return bool(answer.all() if hasattr(answer, "all") else answer)
    except Exception:
        return False


@dataclass
class _Done:
    """What of the end everybody has had a turn in: it comes once, also if somebody failed there."""

    teardown: bool = False
    finalize: bool = False


def _end(context: RunContext, plan: Plan, done: _Done) -> None:
    """The good end."""
    hooks, strategy = context.hooks, context.strategy
    settle(context)
    strategy.teardown()
    if plan.entry is EntryPoint.FIT:
        hooks.on_fit_end()
    done.teardown = True
    _give_turns(_teardowns(context, plan))
    settle(context)  # callbacks may have saved or removed one
    hooks.profiling.end(plan.entry)
    done.finalize = True
    context.metrics.outlets.finalize(context.metrics.loggers, "success")


def _is_consequence(error: Exception, context: RunContext) -> bool:
    """Does this error come from the signal that the others got too?

    Other processes have ended first, and the batch in work could not be done without them; or what came to all
    processes of a terminal or a job has ended the workers of a loader, or of the user's pool.
    """
    lost = isinstance(error, BrokenExecutor) or "DataLoader worker" in str(error)
    return lost or context.strategy.world_size > 1


def _put_back(plan: Plan, signum: int) -> None:
    if plan.put_back is not None and signum in plan.also_hears:
        plan.put_back()


def _teardowns(context: RunContext, plan: Plan) -> list[Callable[[], Any]]:
    groups = (Listener.DATAMODULE, Listener.CALLBACKS, Listener.MODULE)
    calls = [call for group in groups for call in context.hooks.calls(group, "teardown")]
    return [partial(call, stage=str(plan.entry)) for call in calls]


def _give_turns(calls: list[Callable[[], Any]]) -> None:
    """Call them all; the first error is raised after that, and those of the others are reported before."""
    first: BaseException | None = None
    for call in calls:
        try:
            call()
        except KeyboardInterrupt:  # the second Ctrl-C: at once
            raise
        except BaseException as error:
            if first is None:
                first = error
            else:
                log.exception("While the run ended on %r, this failed too:", first)
    if first is not None:
        raise first


def _fail(context: RunContext, plan: Plan, error: BaseException, done: _Done) -> None:
    """Tell everybody; what goes wrong now is reported, and hides neither the error nor the others' turn."""
    context.state.status = Status.INTERRUPTED
    hooks = context.hooks
    if isinstance(error, InterruptedBySignal):
        rank_zero_info(f"Ending the run: signal {signal.Signals(error.signum).name} came.")
    # An earlier save in the background may have failed, which must not cost the next one.
    told: list[Callable[[], Any]] = [partial(settle, context)]
    if context.signals.stopped and plan.save_stopped is not None:
        told.append(plan.save_stopped)
    elif isinstance(error, InterruptedBySignal) and not context.signals.place:
        told.append(partial(_put_back, plan, error.signum))  # the others may not be there: nothing is saved
    for group in (Listener.CALLBACKS, Listener.DATAMODULE):
        told += [partial(call, error) for call in hooks.calls(group, "on_exception")]
    told.append(partial(settle, context))
    if not done.finalize:
        told.append(partial(context.metrics.outlets.finalize, context.metrics.loggers, "failed"))
    told.append(partial(context.strategy.on_exception, error))
    told.append(context.strategy.teardown)
    if not done.teardown:
        told += _teardowns(context, plan)
    told.append(partial(hooks.profiling.teardown, plan.entry))
    for call in told:
        try:
            call()
        except KeyboardInterrupt:  # the second Ctrl-C: at once
            raise
        except BaseException:
            log.exception("While the run ended on %r, this failed too:", error)


@contextmanager
def _global_settings(context: RunContext) -> Iterator[None]:
    """Settings of torch that belong to this run, put back afterwards."""
    settings = context.settings
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    # Called only if asked for: the first call imports torch's compiler, which takes seconds.
    changes = settings.deterministic is not None
    # https://docs.nvidia.com/cuda/cublas/#results-reproducibility: cuBLAS needs it, and reads it once.
    sets_cublas = changes and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    try:
        if sets_cublas:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        if changes:
            torch.use_deterministic_algorithms(bool(settings.deterministic), warn_only=settings.deterministic == "warn")
        if settings.benchmark is not None:
            torch.backends.cudnn.benchmark = settings.benchmark
        elif settings.deterministic:
            torch.backends.cudnn.benchmark = False
        yield
    finally:
        if sets_cublas:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        if changes:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
