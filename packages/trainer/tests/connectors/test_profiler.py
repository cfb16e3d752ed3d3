import pytest

from fulmen.trainer.connectors.profiler import choose_profiler
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError
from fulmen.trainer.profilers.advanced import AdvancedProfiler
from fulmen.trainer.profilers.base import PassThroughProfiler
from fulmen.trainer.profilers.pytorch import PyTorchProfiler
from fulmen.trainer.profilers.simple import SimpleProfiler


def test_a_name_an_object_or_nothing():
    own = SimpleProfiler()
    assert choose_profiler(own) is own
    assert isinstance(choose_profiler("simple"), SimpleProfiler)
    assert isinstance(choose_profiler("advanced"), AdvancedProfiler)
    assert isinstance(choose_profiler("pytorch"), PyTorchProfiler)
    assert isinstance(choose_profiler(None), PassThroughProfiler)


@pytest.mark.parametrize(
    ("flag", "kind"), [("simpel", ConfigurationError), (3, ArgumentTypeError), (SimpleProfiler, ArgumentTypeError)]
)
def test_anything_else_is_refused(flag, kind):
    with pytest.raises(kind, match=r"Trainer\(profiler="):
        choose_profiler(flag)
