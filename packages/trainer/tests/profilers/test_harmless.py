"""A profiler that raises, wherever and from whenever on, ends no run, changes nothing in it and hides no error."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.profilers.advanced import AdvancedProfiler
from fulmen.trainer.profilers.base import Profiler
from fulmen.trainer.profilers.pytorch import PyTorchProfiler
from fulmen.trainer.profilers.simple import SimpleProfiler

METHODS = ["setup", "start", "stop", "profile", "summary", "describe", "teardown"]
ERRORS = [RuntimeError, OSError, KeyError, StopIteration, MemoryError, AssertionError]
Test = TypeVar("Test", bound=Callable[..., Any])


class OwnError(Exception):
    """Of the test."""


class Plain(Profiler):
    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = []

    def start(self, action_name: str) -> None:
        self.running.append(action_name)

    def stop(self, action_name: str) -> None:
        assert self.running.pop() == action_name

    def summary(self) -> str:
        return "what it saw"


class OwnContexts(Plain):
    """Opens its actions in its own way, and would swallow all errors."""

    @contextmanager
    def profile(self, action_name: str) -> Iterator[str]:
        self.start(action_name)
        try:
            yield action_name
        except BaseException:  # as somebody may write it
            pass
        finally:
            self.stop(action_name)


def broken(kind: type[Any], names: frozenset[str], error: type[Exception], after: int) -> Any:
    """One of this kind that raises in the methods of these names, after so many calls of any of them that went well."""

    class Broken(kind):  # type: ignore[misc]
        left = after

        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name not in names:
                return found

            def call(*args: Any, **kwargs: Any) -> Any:
                self.left -= 1
                if self.left < 0:
                    raise error(f"no {name}")
                return found(*args, **kwargs)

            return call

    return Broken()


class Net(BoringModel):
    fails_in: int | None = None

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        if batch_idx == self.fails_in:
            raise OwnError("first")
        return super().training_step(batch, batch_idx)

    def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
        if batch_idx == self.fails_in:
            raise OwnError("first")
        return self(batch)


def new(fails_in: int | None) -> Net:
    torch.manual_seed(1)
    net = Net()
    net.fails_in = fails_in
    return net


def case(kind: Any, names: Any, error: Any, after: int, fails_in: int | None, entry: str) -> Callable[[Test], Test]:
    """One that is always tried."""
    return example(kind=kind, names=names, error=error, after=after, fails_in=fails_in, entry=entry)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from([Plain, OwnContexts, SimpleProfiler, AdvancedProfiler]),
    names=st.frozensets(st.sampled_from(METHODS), min_size=1),
    error=st.sampled_from(ERRORS),
    after=st.integers(0, 40),
    fails_in=st.none() | st.integers(0, 1),
    entry=st.sampled_from(["fit", "predict"]),
)
@case(Plain, frozenset(METHODS), RuntimeError, 0, None, "fit")
@case(Plain, frozenset({"stop"}), RuntimeError, 0, 1, "fit")
@case(OwnContexts, frozenset({"stop"}), RuntimeError, 9, 1, "fit")
@case(OwnContexts, frozenset({"profile"}), StopIteration, 3, None, "predict")
@case(SimpleProfiler, frozenset({"stop"}), OSError, 5, None, "fit")
@case(AdvancedProfiler, frozenset({"start", "summary"}), KeyError, 7, None, "fit")
@case(PyTorchProfiler, frozenset({"start", "teardown"}), OSError, 12, None, "fit")
def test_a_profiler_that_raises_ends_nothing_and_hides_nothing(
    kind: type[Profiler],
    names: frozenset[str],
    error: type[Exception],
    after: int,
    fails_in: int | None,
    entry: str,
    quick: Any,
    rows: Any,
    caplog: Any,
) -> None:
    caplog.clear()
    net = new(fails_in)
    flags: dict[str, Any] = {"limit_train_batches": 3, "limit_val_batches": 1, "limit_predict_batches": 3}
    trainer = quick(profiler=broken(kind, names, error, after), logger=rows, **flags)
    if fails_in is None:
        getattr(trainer, entry)(net)
        assert trainer.state.finished
        alone = new(None)
        getattr(quick(**flags), entry)(alone)
        for name, weight in alone.state_dict().items():
            assert weight.equal(net.state_dict()[name])
    else:
        with pytest.raises(OwnError, match="first"):
            getattr(trainer, entry)(net)
        assert trainer.interrupted
    said = [record.message for record in caplog.records if "A profiler only watches a run" in record.message]
    for name in METHODS:
        assert sum(one.startswith(f"Broken.{name} failed: ") for one in said) <= 1, "once"
    if after == 0 and "setup" in names:
        assert any(f"no {name}" in one for one in said for name in names)
    # And once more, with the same ones.
    net.fails_in = None
    getattr(trainer, entry)(net)
    assert trainer.state.finished


@pytest.mark.parametrize("kind", [Plain, OwnContexts])
def test_what_began_ends_when_a_step_fails(kind: Any, quick: Any) -> None:
    profiler = kind()
    with pytest.raises(OwnError):
        quick(profiler=profiler, limit_val_batches=0).fit(new(1))
    assert profiler.running == []


def test_it_is_told_by_name_with_its_traceback_once(quick: Any, caplog: Any) -> None:
    profiler = broken(Plain, frozenset({"stop", "summary", "teardown"}), OSError, 0)
    with caplog.at_level(logging.ERROR):
        quick(profiler=profiler, limit_train_batches=5, limit_val_batches=0).fit(new(None))
    for name, error in (("stop", "no stop"), ("describe", "no summary"), ("teardown", "no teardown")):
        assert caplog.text.count(f"Broken.{name} failed: OSError('{error}'). A profiler only watches a run") == 1
        assert f"\nOSError: {error}" in caplog.text


def test_a_wrong_argument_is_still_said_before_any_work(quick: Any) -> None:
    net = new(0)
    with pytest.raises(ConfigurationError, match="no setup"):
        quick(profiler=broken(Plain, frozenset({"setup"}), ConfigurationError, 0)).fit(net)


@pytest.mark.parametrize("leaves", [KeyboardInterrupt, SystemExit])
def test_who_wants_to_leave_leaves(leaves: Any, quick: Any) -> None:
    with pytest.raises(SystemExit):
        quick(profiler=broken(Plain, frozenset({"start"}), leaves, 9)).fit(new(None))


@pytest.mark.parametrize("kind", [SimpleProfiler, AdvancedProfiler, PyTorchProfiler])
def test_an_action_of_the_user_that_an_error_left_open_can_begin_anew(kind: Any, quick: Any, tmp_path: Any) -> None:
    class Times(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.trainer.profiler.start("mine")
            answer = super().training_step(batch, batch_idx)
            self.trainer.profiler.stop("mine")
            return answer

    net = Times()
    net.fails_in = 1
    trainer = quick(profiler=kind(dirpath=tmp_path), limit_train_batches=2, limit_val_batches=0)
    with pytest.raises(OwnError):
        trainer.fit(net)
    net.fails_in = None
    trainer.fit(net)
    assert trainer.state.finished


def test_a_trace_that_cannot_be_written_ends_nothing(quick: Any, tmp_path: Any, caplog: Any) -> None:
    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    profiler = PyTorchProfiler(dirpath=tmp_path, on_trace_ready=full)
    trainer = quick(profiler=profiler, limit_train_batches=8, limit_val_batches=0)
    trainer.fit(new(None))
    assert (trainer.state.finished, trainer.global_step) == (True, 8)
    assert "PyTorchProfiler.start failed: OSError(28, 'No space left on device')" in caplog.text
    assert profiler.profiler is None, "closed"
    trainer.fit(new(None))
