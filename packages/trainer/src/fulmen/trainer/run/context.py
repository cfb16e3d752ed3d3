"""All that a loop may touch."""

from dataclasses import dataclass

from fulmen.trainer.data.sources import RunData
from fulmen.trainer.hooks.dispatch import Hooks
from fulmen.trainer.metrics.board import MetricsBoard
from fulmen.trainer.profilers.base import Profiler
from fulmen.trainer.run.settings import Settings
from fulmen.trainer.run.signals import Signals
from fulmen.trainer.run.state import RunState
from fulmen.trainer.strategies.base import Strategy


@dataclass(frozen=True)
class RunContext:
    """The eight parts of a run. Loops hold this, never the Trainer; a rehearsal gets one with other parts."""

    settings: Settings
    state: RunState
    strategy: Strategy
    hooks: Hooks
    data: RunData
    metrics: MetricsBoard
    profiler: Profiler
    signals: Signals
