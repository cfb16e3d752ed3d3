"""What the loops share: getting the loaders of a stage ready."""

from collections.abc import Sequence

from fulmen.fabric.seeding import run_seed
from fulmen.trainer.data.limits import num_batches
from fulmen.trainer.data.prepare_loaders import advise_workers, prepare
from fulmen.trainer.data.sources import PreparedLoaders
from fulmen.trainer.run.context import RunContext
from fulmen.trainer.stages import EntryPoint, Stage


def load(run: RunContext, stage: Stage, epoch: int = 0) -> PreparedLoaders:
    """Ask the source of `stage` for its loaders, in `epoch`, and make them ready for this run.

    Raises:
        ConfigurationError: If what comes cannot be iterated, or is empty.
    """
    source = run.data.sources[stage]
    with run.hooks.inside(source.name):
        raw = source.load()
    prepared = prepare(
        raw,
        stage=stage,
        strategy=run.strategy,
        overfit_batches=run.settings.overfit_batches,
        use_distributed_sampler=run.settings.use_distributed_sampler,
        seed=run_seed() if run.data.seed is None else run.data.seed,
        source=str(source),
        read_once=_is_read_once(run, stage),
    )
    devices = getattr(run.strategy, "parallel_devices", None)
    advise_workers(prepared, stage=stage, num_local_processes=len(devices) if devices else 1)
    prepared.loaded_in_epoch = epoch
    run.data.prepared[stage] = prepared
    return prepared


def _is_read_once(run: RunContext, stage: Stage) -> bool:
    if stage is not Stage.TRAIN:
        return run.state.fn is not EntryPoint.FIT  # a fit validates again and again
    settings, source = run.settings, run.data.sources[stage]
    asked_anew = source.value is None and settings.reload_dataloaders_every_n_epochs == 1
    # Without a bound of epochs an endless stream is meant; one that ends is told of when its second epoch is empty.
    return asked_anew or settings.max_epochs in (1, -1)


def limited(lengths: Sequence[int | float], limit: int | float | None, stage: Stage) -> list[int | float]:
    """How many batches of each loader run under the limit of `stage`."""
    name = f"limit_{stage.dataloader_prefix}_batches"
    return [num_batches(limit, length, name=name) for length in lengths]


def nothing_to_run(run: RunContext, max_batches: Sequence[int | float]) -> bool:
    """Is there no batch, in any process? One without a batch of its own goes along with the others' hooks."""
    nothing = sum(max_batches) == 0
    return run.strategy.reduce_boolean_decision(nothing, all=True) if run.strategy.world_size > 1 else nothing
