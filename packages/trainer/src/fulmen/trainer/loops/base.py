"""What the loops share: getting the loaders of a stage ready."""

from collections.abc import Sequence

from fulmen.fabric.seeding import run_seed
from fulmen.trainer.data.limits import num_batches
from fulmen.trainer.data.prepare_loaders import prepare
from fulmen.trainer.data.sources import PreparedLoaders
from fulmen.trainer.run.context import RunContext
from fulmen.trainer.stages import Stage


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
        seed=run_seed(),
        source=str(source),
    )
    prepared.loaded_in_epoch = epoch
    run.data.prepared[stage] = prepared
    return prepared


def limited(lengths: Sequence[int | float], limit: int | float | None, stage: Stage) -> list[int | float]:
    """How many batches of each loader run under the limit of `stage`."""
    name = f"limit_{stage.dataloader_prefix}_batches"
    return [num_batches(limit, length, name=name) for length in lengths]
