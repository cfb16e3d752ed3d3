"""However a run ends, everybody has a turn, the first error is the one that is seen, and all is as it was before."""

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.demos import BoringDataModule, BoringModel
from fulmen.trainer.hooks.table import HOOKS, Listener
from fulmen.trainer.loggers.base import DummyLogger
from fulmen.trainer.profilers.base import Profiler
from fulmen.trainer.signature import is_overridden
from fulmen.trainer.strategies.single_device import SingleDeviceStrategy
from fulmen.trainer.trainer import Trainer

# Every hook of callbacks that an entry point reaches, and each of the module's own steps.
NOT_REACHED = ("exception", "load_checkpoint", "save", "checkpoint_saved")
ALL_HOOKS = [
    name
    for name, hook in HOOKS.items()
    if Listener.CALLBACKS in hook.listeners and not any(word in name for word in NOT_REACHED)
]
CALLBACK_HOOKS = [name for name in ALL_HOOKS if not any(word in name for word in ("test", "predict"))]
STEPS = ["training_step", "validation_step", "configure_optimizers", "backward", "train_dataloader"]
MODES = ["on_validation_model_eval", "on_validation_model_train"]
PLACES = [*CALLBACK_HOOKS, *STEPS, *MODES]
EVALUATION = {"validate": "validation", "test": "test", "predict": "predict"}
CALLS = [("fit", place) for place in PLACES] + [
    (entry, place)
    for entry, word in EVALUATION.items()
    for place in (*ALL_HOOKS, *MODES, f"{word}_step", f"on_{word}_model_eval", "setup", "teardown")
    if word in place or place in ("setup", "teardown")
]


class OwnError(Exception):
    """Of the test."""


class Later(Exception):
    """What goes wrong while the run ends on another error."""


class Ends(Callback):
    """Does something where it is told to, once."""

    def __init__(self, place: str, act: Any) -> None:
        self.place, self.act = place, act

    @property
    def state_key(self) -> str:
        return "Ends"

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name in ALL_HOOKS and name == self.__dict__.get("place"):
            return lambda *_, **__: self._once()
        return super().__getattribute__(name)

    def _once(self) -> None:
        self.place = ""
        self.act()


class Turns(Callback):
    """Writes down its turns at the end, and fails in them if it is told to."""

    def __init__(self, fails: bool) -> None:
        self.turns: list[str] = []
        self.fails = fails

    @property
    def state_key(self) -> str:
        return f"Turns{id(self)}"

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self.turns.append("on_exception")
        if self.fails:
            raise Later("on_exception")

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self.turns.append("teardown")
        if self.fails:
            raise Later("teardown")


class Finalized(DummyLogger):
    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.turns: list[str] = []
        self.fails = fails

    def finalize(self, status: str) -> None:
        self.turns.append(status)
        if self.fails:
            raise Later("finalize")


class Net(BoringModel):
    """Has a part that is not trained, and one that drops out."""

    def __init__(self, place: str, act: Any) -> None:
        super().__init__()
        self.frozen = nn.BatchNorm1d(2).eval()
        self.drop = nn.Dropout()
        self.place, self.act = place, act

    def _at(self, place: str) -> None:
        if place == self.place:
            self.place = ""
            self.act()

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        self._at("training_step")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Tensor, batch_idx: int) -> Any:
        assert not self.drop.training
        self._at("validation_step")
        return super().validation_step(batch, batch_idx)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self._at("backward")
        super().backward(loss, *args, **kwargs)

    def configure_optimizers(self) -> Any:
        self._at("configure_optimizers")
        return super().configure_optimizers()

    def test_step(self, batch: Tensor, batch_idx: int) -> Any:
        self._at("test_step")
        return super().test_step(batch, batch_idx)

    def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
        self._at("predict_step")
        return self(batch)

    def on_validation_model_eval(self) -> None:
        super().on_validation_model_eval()
        self._at("on_validation_model_eval")

    def on_validation_model_train(self) -> None:
        self.train()
        self._at("on_validation_model_train")
        self.frozen.eval()

    def on_test_model_eval(self) -> None:
        super().on_test_model_eval()
        self._at("on_test_model_eval")

    def on_predict_model_eval(self) -> None:
        super().on_predict_model_eval()
        self._at("on_predict_model_eval")


class Device(SingleDeviceStrategy):
    """Fails where it hears of the end, if it is told to."""

    def __init__(self, fails: bool) -> None:
        super().__init__(device="cpu")
        self.fails = fails
        self.turns: list[str] = []

    def teardown(self) -> None:
        super().teardown()
        self.turns.append("teardown")
        if self.fails and len(self.turns) > 1:
            raise Later("teardown of the strategy")

    def on_exception(self, exception: BaseException) -> None:
        self.turns.append("on_exception")
        if self.fails:
            raise Later("on_exception of the strategy")


class Stopwatch(Profiler):
    """Fails wherever it hears of anything, if it is told to; every other action begins all the same."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.fails = fails
        self.turns: list[str] = []
        self.running: list[str] = []
        self.begun = 0

    def setup(self, *args: Any, **kwargs: Any) -> None:
        super().setup(*args, **kwargs)
        if self.fails:
            raise Later("setup of the profiler")

    def start(self, action_name: str) -> None:
        self.begun += 1
        if self.fails and self.begun % 2:
            raise Later("start of the profiler")
        self.running.append(action_name)

    def stop(self, action_name: str) -> None:
        assert self.running.pop() == action_name
        if self.fails:
            raise Later("stop of the profiler")

    def summary(self) -> str:
        self.turns.append("summary")
        if self.fails:
            raise Later("summary of the profiler")
        return ""

    def teardown(self, stage: str | None) -> None:
        self.turns.append("teardown")
        if self.fails:
            raise Later("teardown of the profiler")


class Data(BoringDataModule):
    def __init__(self, place: str, act: Any, fails: bool = False) -> None:
        super().__init__()
        self.place, self.act = place, act
        self.fails = fails
        self.turns: list[str] = []

    def train_dataloader(self) -> Any:
        if self.place == "train_dataloader":
            self.act()
        return super().train_dataloader()

    def on_exception(self, exception: BaseException) -> None:
        self.turns.append("on_exception")
        if self.fails:
            raise Later("on_exception of the data")

    def teardown(self, stage: str) -> None:
        self.turns.append("teardown")


def surroundings(net: nn.Module) -> dict[str, Any]:
    """What a run may change and has to put back."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return {
        "modes": [part.training for part in net.modules()],
        "hooks": [{kind: dict(getattr(part, kind)) for kind in hooks} for part in net.modules()],
        "methods": [sorted(name for name, own in vars(part).items() if callable(own)) for part in net.modules()],
        "needs gradient": [parameter.requires_grad for parameter in net.parameters()],
        "handlers": [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)],
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "dtype": torch.get_default_dtype(),
        "benchmark": torch.backends.cudnn.benchmark,
        "folder": os.getcwd(),
        "matmul": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "excepthooks": (sys.excepthook, threading.excepthook, sys.unraisablehook),
        "streams": (sys.stdout, sys.stderr),
        "path": list(sys.path),
        "filters": list(warnings.filters),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "running": sorted(thread.name for thread in threading.enumerate()),
    }


def raising(error: BaseException) -> Any:
    def act() -> None:
        raise error

    return act


@pytest.fixture(scope="module")
def torch_has_its_compiler() -> None:
    """Its first use imports it, which changes filters of warnings."""
    torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())


@pytest.mark.usefixtures("torch_has_its_compiler")
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    call=st.sampled_from(CALLS),
    kind=st.sampled_from([OwnError, SystemExit, GeneratorExit, KeyboardInterrupt]),
    precision=st.sampled_from(["32-true", "64-true", "bf16-true", "bf16-mixed"]),
    fails=st.tuples(*[st.booleans()] * 7),
)
@example(call=("fit", "validation_step"), kind=OwnError, precision="64-true", fails=(True,) * 7)
@example(call=("fit", "teardown"), kind=OwnError, precision="32-true", fails=(True,) * 7)
@example(call=("predict", "teardown"), kind=KeyboardInterrupt, precision="32-true", fails=(True,) * 7)
@example(call=("fit", "teardown"), kind=SystemExit, precision="32-true", fails=(False,) * 7)
@example(call=("fit", "on_validation_model_eval"), kind=OwnError, precision="32-true", fails=(False,) * 7)
@example(call=("fit", "on_validation_model_train"), kind=OwnError, precision="32-true", fails=(False,) * 7)
@example(call=("predict", "predict_step"), kind=KeyboardInterrupt, precision="32-true", fails=(True,) * 7)
def test_everybody_has_a_turn_and_the_first_error_is_seen(
    call: tuple[str, str], kind: type[BaseException], precision: str, fails: tuple[bool, ...], quick: Any
) -> None:
    entry, place = call
    error = kind("first")
    error.add_note("said by the user")
    net, data = Net(place, raising(error)), Data(place, raising(error), fails[4])
    before = surroundings(net)
    first, last = Turns(fails[0]), Turns(fails[1])
    loggers = [Finalized(fails[2]), Finalized(fails[3])]
    callbacks = [first, Ends(place, raising(error)), last]
    strategy, profiler = Device(fails[5]), Stopwatch(fails[6])
    trainer = quick(
        accelerator="auto",
        strategy=strategy,
        callbacks=callbacks,
        logger=loggers,
        limit_train_batches=2,
        limit_val_batches=1,
        limit_test_batches=1,
        limit_predict_batches=1,
        num_sanity_val_steps=1,
        precision=precision,
        deterministic=True,
        benchmark=True,
        detect_anomaly=True,
        profiler=profiler,
    )
    with pytest.raises((kind, Later, SystemExit)) as caught:
        getattr(trainer, entry)(net, datamodule=data)
    if place == "teardown" and fails[0] and kind is not KeyboardInterrupt:
        assert isinstance(caught.value, Later), "that one came first"
    elif kind is KeyboardInterrupt:
        assert isinstance(caught.value, SystemExit)
        assert caught.value.code == 130
    else:
        assert caught.value is error
        assert error.__notes__ == ["said by the user"]
    if not (place == "teardown" and kind is KeyboardInterrupt):  # there it is taken for the second Ctrl-C
        for owner in (first, last, data):
            assert owner.turns.count("teardown") == 1
            assert owner.turns.count("on_exception") == 1
    for logger in loggers:
        assert logger.turns == ["failed"]
    assert strategy.turns.count("on_exception") == 1
    assert "teardown" in strategy.turns
    assert profiler.turns[-1] == "teardown"
    assert not profiler.running
    assert trainer.interrupted
    assert trainer.state.stage is None
    assert surroundings(net) == before


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from([place for place in PLACES if place not in ("teardown", "setup")]))
def test_a_run_can_follow_on_one_that_failed_anywhere(place: str, quick: Any) -> None:
    error = OwnError("first")
    net = Net(place, raising(error))
    trainer = quick(callbacks=[Ends(place, raising(error))], limit_train_batches=1, limit_val_batches=1)
    data = Data(place, raising(error))
    if place in ("on_sanity_check_start", "on_sanity_check_end"):
        return
    with pytest.raises(OwnError):
        trainer.fit(net, datamodule=data)
    net.place = data.place = ""
    trainer.fit(net, datamodule=data)
    assert trainer.state.finished


def test_the_places_are_really_reached(quick: Any) -> None:
    assert len(CALLBACK_HOOKS) > 20
    assert is_overridden("on_train_start", Ends("on_train_start", None), Callback)
    assert not is_overridden("on_fit_start", Ends("on_train_start", None), Callback)
    assert issubclass(Data, LightningDataModule)
