"""What `self.log` feeds, and what is seen of it."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.trainer.metrics.batch_size import extract_batch_size as extract_batch_size
    from fulmen.trainer.metrics.board import MetricsBoard as MetricsBoard
    from fulmen.trainer.metrics.log_call import LogCall as LogCall
    from fulmen.trainer.metrics.log_call import LogRule as LogRule

__all__ = ["LogCall", "LogRule", "MetricsBoard", "extract_batch_size"]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "LogCall": "fulmen.trainer.metrics.log_call",
        "LogRule": "fulmen.trainer.metrics.log_call",
        "MetricsBoard": "fulmen.trainer.metrics.board",
        "extract_batch_size": "fulmen.trainer.metrics.batch_size",
    },
)
