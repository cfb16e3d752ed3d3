"""What a configuration would take, on machines that need not exist: memory, communication, steps."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.forecast.figures import Forecast as Forecast
    from fulmen.fabric.forecast.figures import Shard as Shard
    from fulmen.fabric.forecast.figures import Traffic as Traffic
    from fulmen.fabric.forecast.rehearse import make_forecast as make_forecast

__all__ = ["Forecast", "Shard", "Traffic", "make_forecast"]
__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "Forecast": "fulmen.fabric.forecast.figures",
        "Shard": "fulmen.fabric.forecast.figures",
        "Traffic": "fulmen.fabric.forecast.figures",
        "make_forecast": "fulmen.fabric.forecast.rehearse",
    },
)
