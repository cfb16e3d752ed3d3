from dataclasses import FrozenInstanceError, fields

import pytest

from fulmen.trainer.run.context import RunContext


def test_a_run_has_eight_parts_and_keeps_them(quick):
    context = quick().context
    assert len(fields(RunContext)) == 8
    with pytest.raises(FrozenInstanceError):
        context.settings = None
    assert context.hooks.trainer.context is context
