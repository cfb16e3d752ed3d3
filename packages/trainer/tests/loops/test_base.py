import math

import pytest

from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.loops.base import limited
from fulmen.trainer.stages import Stage


def test_each_loader_is_limited_and_the_flag_named_in_errors():
    assert limited([10, 3, math.inf], 5, Stage.VALIDATE) == [5, 3, 5]
    assert limited([10, 4], 0.5, Stage.TRAIN) == [5, 2]
    for stage, flag in [(Stage.SANITY_CHECK, "limit_val_batches"), (Stage.PREDICT, "limit_predict_batches")]:
        with pytest.raises(ConfigurationError, match=f"{flag}=0.5"):
            limited([math.inf], 0.5, stage)
