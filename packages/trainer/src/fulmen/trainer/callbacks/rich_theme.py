"""How a RichProgressBar looks."""

from dataclasses import dataclass
from typing import Any


@dataclass
class RichProgressBarTheme:
    """Styles of a RichProgressBar, as https://rich.readthedocs.io/en/stable/style.html names them.

    Args:
        description: Of the words in front of a bar.
        progress_bar: Of the part of a bar that is done.
        progress_bar_finished: Of a bar that is full.
        progress_bar_pulse: Of a bar whose end is not known.
        batch_progress: Of the number of batches.
        time: Of the times.
        processing_speed: Of the rate.
        metrics: Of the metrics.
        metrics_text_delimiter: Between two metrics.
        metrics_format: Of numbers with a fraction, as for `format`.
    """

    description: str | Any = ""
    progress_bar: str | Any = "#6206E0"
    progress_bar_finished: str | Any = "#6206E0"
    progress_bar_pulse: str | Any = "#6206E0"
    batch_progress: str | Any = ""
    time: str | Any = "dim"
    processing_speed: str | Any = "dim underline"
    metrics: str | Any = "italic"
    metrics_text_delimiter: str = " "
    metrics_format: str = ".3f"
