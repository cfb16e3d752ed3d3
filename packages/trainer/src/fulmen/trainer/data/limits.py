"""How many batches will run: a limit times a length.

Knows no loader and no trainer: numbers in, numbers out.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import cast

from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError

Count = int | float
"""A number of batches: an int, or `math.inf` where nobody knows."""


def check_limit(limit: object, *, name: str) -> int | float:
    """`limit` as it was given, if it is one.

    Args:
        limit: A number of batches (an int from 0 on) or a part of them (a float in [0, 1]).
        name: The argument as its user knows it ("limit_train_batches"), for messages.

    Raises:
        ArgumentTypeError: It is no number.
        ConfigurationError: It is negative, NaN, or a float above 1.
    """
    if isinstance(limit, bool) or not isinstance(limit, Real):
        raise ArgumentTypeError(
            f"{name}={limit!r} is no number ({type(limit).__name__})."
            " It says how many batches run: as an int, or as a fraction of the loader."
            f" Pass for instance {name}=10 or {name}=0.5."
        )
    if isinstance(limit, Integral):
        if int(limit) >= 0:
            return int(limit)
    elif 0.0 <= float(limit) <= 1.0:
        return float(limit)
    raise ConfigurationError(
        f"{name}={limit!r} is no usable limit. An int counts batches and is not negative;"
        " a float is a fraction between 0.0 and 1.0."
        f" Pass for instance {name}=10 or {name}=0.5."
    )


def num_batches(limit: int | float | None, length: Count | None, *, name: str) -> Count:
    """How many of `length` batches run.

    Args:
        limit: An int counts batches, a float in [0, 1] is a fraction (rounded down), None is all.
        length: How many there are; None or `math.inf` if nobody knows.
        name: The argument as its user knows it, for messages.

    Returns:
        An int; `math.inf` if all run and their number is unknown.

    Raises:
        ConfigurationError: The limit is none (see `check_limit`), is a fraction of an unknown length, or is a
            fraction so small that no batch is left.

    >>> num_batches(0.5, 7, name="limit_train_batches")
    3
    """
    known = math.inf if length is None else length
    if limit is None:
        return known
    limit = check_limit(limit, name=name)
    if isinstance(limit, int):
        return min(limit, known)
    if limit == 0.0 or known == 0:
        return 0
    if limit == 1.0:
        return known
    if math.isinf(known):
        raise ConfigurationError(
            f"{name}={limit} asks for a part of a loader that does not know its length."
            " Without a length there is no telling how many batches that would be."
            f" Pass a number of batches ({name}=100) or all of them ({name}=1.0), or give the dataset a `__len__`."
        )
    count = int(cast(int, known) * limit)
    if count == 0:
        raise ConfigurationError(
            f"{name}={limit} of {known} batches is less than one batch. Nothing would run."
            f" Pass at least {name}={math.ceil(1e4 / known) / 1e4}, or a number of batches such as {name}=1."
        )
    return count
