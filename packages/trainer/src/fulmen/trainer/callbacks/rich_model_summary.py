"""Print the summary of the model as a table of rich."""

from typing import Any

from fulmen.fabric.optional_packages import require
from fulmen.trainer.callbacks.model_summary import ModelSummary
from fulmen.trainer.summary.table import get_formatted_model_size, get_human_readable_count

_NUMBERS = ("Params", "FLOPs")
_STYLES = {" ": "dim", "Name": "bold", "Type": "cyan", "Mode": "dim"}


class RichModelSummary(ModelSummary):
    """Print layers, parameters and sizes before training, as a table that fits the screen.

    Args:
        max_depth: How many levels of layers inside layers; -1 for all, 0 prints nothing.
        summarize_kwargs: Arguments of `rich.table.Table`.

    Raises:
        ConfigurationError: For a depth below -1.
        MissingPackageError: If rich is not installed.
    """

    def __init__(self, max_depth: int = 1, **summarize_kwargs: Any) -> None:
        require("rich", purpose=type(self).__name__, pip="'fulmen-trainer[rich]'")
        super().__init__(max_depth, **summarize_kwargs)

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Print a summary; arguments as in `ModelSummary.summarize`."""
        from rich.console import Console
        from rich.table import Table

        console = Console()
        table = Table(**{"header_style": "bold magenta", **summarize_kwargs})
        for title, _ in summary_data:
            is_number = title in _NUMBERS
            justify: Any = "right" if is_number else "left"
            # A name that is cut short says little: on a narrow screen it goes on in the next line.
            table.add_column(title.strip(), style=_STYLES.get(title), justify=justify, overflow="fold")
        for row in zip(*(cells for _, cells in summary_data), strict=True):
            table.add_row(*row)
        console.print(table)
        totals = Table.grid(padding=(0, 2))
        totals.add_column(justify="right", style="bold")
        totals.add_column()
        for number, what in (
            (get_human_readable_count(trainable_parameters), "Trainable params"),
            (get_human_readable_count(total_parameters - trainable_parameters), "Non-trainable params"),
            (get_human_readable_count(total_parameters), "Total params"),
            (get_formatted_model_size(model_size), "Total estimated model params size (MB)"),
            (str(total_training_modes["train"]), "Modules in train mode"),
            (str(total_training_modes["eval"]), "Modules in eval mode"),
            *([(get_human_readable_count(total_flops), "Total FLOPs")] if total_flops else []),
        ):
            totals.add_row(number.strip(), what)
        console.print(totals)
