"""How a RichProgressBar looks."""

from dataclasses import dataclass, fields
from typing import Any

from fulmen.fabric.arguments import check_kind
from fulmen.fabric.errors import ConfigurationError


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


def check_theme(theme: RichProgressBarTheme, console_kwargs: dict[str, Any]) -> None:
    """Refuse a theme that cannot be drawn with.

    Raises:
        ArgumentTypeError: For what is no theme.
        ConfigurationError: For a style that rich does not know.
    """
    from rich.console import Console
    from rich.errors import MissingStyle

    wanted = "RichProgressBarTheme(progress_bar='green'), for example"
    check_kind("RichProgressBar", "theme", theme, RichProgressBarTheme, "It holds the styles of all parts.", wanted)
    console = Console(**console_kwargs)  # it may know styles by other names
    for part in fields(theme):
        style = getattr(theme, part.name)
        if part.name.startswith("metrics_") or not isinstance(style, str):
            continue
        try:
            console.get_style(style)
        except MissingStyle as error:
            raise ConfigurationError(
                f"RichProgressBarTheme({part.name}={style!r}) is no style: {error}. A style is a colour or a look."
                " Pass 'green', '#6206E0' or 'dim underline', for example."
            ) from error
