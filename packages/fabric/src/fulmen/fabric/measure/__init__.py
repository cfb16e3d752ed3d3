"""How fast a run is, how well it uses the device, and whether the loss jumps."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.measure.device_flops import get_available_flops as get_available_flops
    from fulmen.fabric.measure.spikes import SpikeDetection as SpikeDetection
    from fulmen.fabric.measure.spikes import TrainingSpikeException as TrainingSpikeException
    from fulmen.fabric.measure.throughput import Throughput as Throughput
    from fulmen.fabric.measure.throughput import ThroughputMonitor as ThroughputMonitor
    from fulmen.fabric.measure.throughput import measure_flops as measure_flops

_WHERE = {
    "SpikeDetection": "fulmen.fabric.measure.spikes",
    "Throughput": "fulmen.fabric.measure.throughput",
    "ThroughputMonitor": "fulmen.fabric.measure.throughput",
    "TrainingSpikeException": "fulmen.fabric.measure.spikes",
    "get_available_flops": "fulmen.fabric.measure.device_flops",
    "measure_flops": "fulmen.fabric.measure.throughput",
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_face(__name__, _WHERE)
