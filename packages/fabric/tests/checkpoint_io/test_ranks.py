"""Work of several processes; what happens in several is tested with sharded checkpoints."""

from __future__ import annotations

import pytest

from fulmen.fabric.checkpoint_io.ranks import Ranks


def test_one_process_alone_is_rank_zero_of_one() -> None:
    ranks = Ranks()
    assert (ranks.rank, ranks.world_size, ranks.is_zero) == (0, 1, True)
    assert ranks.each(lambda: 3) == 3
    assert ranks.on_zero(lambda: 4) == 4
    assert ranks.plan(lambda: 5, lambda found: [number + 1 for number in found]) == 6


def test_the_error_is_the_one_that_was_raised() -> None:
    ranks = Ranks()

    def fail() -> int:
        raise ZeroDivisionError("here")

    for call in (
        lambda: ranks.each(fail),
        lambda: ranks.on_zero(fail),
        lambda: ranks.plan(fail, lambda found: found),
        lambda: ranks.plan(lambda: 1, lambda found: [fail()]),
    ):
        with pytest.raises(ZeroDivisionError, match="here"):
            call()
