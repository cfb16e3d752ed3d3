"""The summary of a model as text."""

import math

PARAMETER_NUM_UNITS = [" ", "K", "M", "B", "T"]


def format_summary(
    total_parameters: int,
    trainable_parameters: int,
    model_size_mb: float,
    training_modes: dict[str, int],
    total_flops: int,
    *columns: tuple[str, list[str]],
) -> str:
    """A table with one row per layer, and the totals below it."""
    widths = [max(len(title), *map(len, cells)) if cells else len(title) for title, cells in columns]
    # The first column numbers the rows: its numbers stand on the right.
    header = " | ".join(title.ljust(width) for (title, _), width in zip(columns, widths, strict=True))
    rows = [
        " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        for cells in zip(*(cells for _, cells in columns), strict=True)
    ]
    rule = "-" * len(header)
    frozen = total_parameters - trainable_parameters
    totals = [
        (get_human_readable_count(trainable_parameters), "Trainable params"),
        (get_human_readable_count(frozen), "Non-trainable params"),
        (get_human_readable_count(total_parameters), "Total params"),
        (get_formatted_model_size(model_size_mb), "Total estimated model params size (MB)"),
        (str(training_modes["train"]), "Modules in train mode"),
        (str(training_modes["eval"]), "Modules in eval mode"),
    ]
    if total_flops:  # they are counted only with an example input
        totals.append((get_human_readable_count(total_flops), "Total Flops"))
    return "\n".join([header, rule, *rows, rule, *(f"{number:<10}{what}" for number, what in totals)])


def get_human_readable_count(number: int) -> str:
    """A count with its unit; the unit of counts below 1000 is a space.

    >>> [get_human_readable_count(n) for n in (0, 123, 1234, 2_000_000, 4 * 10**14, 5 * 10**15)]
    ['0  ', '123  ', '1.2 K', '2.0 M', '400 T', '5,000 T']
    """
    digits = math.floor(math.log10(number)) + 1 if number > 0 else 1
    unit = min(math.ceil(digits / 3), len(PARAMETER_NUM_UNITS)) - 1
    scaled = number / 1000**unit
    text = f"{int(scaled):,d}" if unit == 0 or scaled >= 100 else f"{scaled:,.1f}"
    return f"{text} {PARAMETER_NUM_UNITS[unit]}"


def get_formatted_model_size(total_model_size: float) -> str:
    """A size in megabytes, to the kilobyte."""
    return f"{total_model_size:,.3f}"
