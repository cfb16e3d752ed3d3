"""However a run ends, everybody has a turn, the first error is the one that is seen, and all is as it was before."""

import os
import signal
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
from fulmen.trainer.signature import is_overridden
from fulmen.trainer.trainer import Trainer

# Every hook of callbacks that a fit with validation reaches, and each of the module's own steps.
NOT_REACHED = ("test", "predict", "exception", "load_checkpoint", "save", "checkpoint_saved")
CALLBACK_HOOKS = [
    name
    for name, hook in HOOKS.items()
    if Listener.CALLBACKS in hook.listeners and not any(word in name for word in NOT_REACHED)
]
STEPS = ["training_step", "validation_step", "configure_optimizers", "backward", "train_dataloader"]
PLACES = [*CALLBACK_HOOKS, *STEPS]


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
        if not name.startswith("_") and name in CALLBACK_HOOKS and name == self.__dict__.get("place"):
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


class Data(BoringDataModule):
    def __init__(self, place: str, act: Any) -> None:
        super().__init__()
        self.place, self.act = place, act
        self.turns: list[str] = []

    def train_dataloader(self) -> Any:
        if self.place == "train_dataloader":
            self.act()
        return super().train_dataloader()

    def on_exception(self, exception: BaseException) -> None:
        self.turns.append("on_exception")

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
    }


def raising(error: BaseException) -> Any:
    def act() -> None:
        raise error

    return act


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.sampled_from(PLACES),
    kind=st.sampled_from([OwnError, SystemExit, GeneratorExit]),
    precision=st.sampled_from(["32-true", "64-true", "bf16-true"]),
    fails=st.tuples(*[st.booleans()] * 4),
)
@example(place="validation_step", kind=OwnError, precision="64-true", fails=(True,) * 4)
@example(place="teardown", kind=OwnError, precision="32-true", fails=(True,) * 4)
@example(place="teardown", kind=SystemExit, precision="32-true", fails=(False,) * 4)
def test_everybody_has_a_turn_and_the_first_error_is_seen(
    place: str, kind: type[BaseException], precision: str, fails: tuple[bool, ...], quick: Any
) -> None:
    error = kind("first")
    net, data = Net(place, raising(error)), Data(place, raising(error))
    before = surroundings(net)
    first, last = Turns(fails[0]), Turns(fails[1])
    loggers = [Finalized(fails[2]), Finalized(fails[3])]
    callbacks = [first, Ends(place, raising(error)), last]
    trainer = quick(
        callbacks=callbacks,
        logger=loggers,
        limit_train_batches=2,
        limit_val_batches=1,
        num_sanity_val_steps=1,
        precision=precision,
        deterministic=True,
        detect_anomaly=True,
    )
    with pytest.raises((kind, Later)) as caught:
        trainer.fit(net, datamodule=data)
    if place == "teardown" and fails[0]:
        assert isinstance(caught.value, Later), "that one came first"
    else:
        assert caught.value is error
    for owner in (first, last, data):
        assert owner.turns.count("teardown") == 1
        assert owner.turns.count("on_exception") == 1
    for logger in loggers:
        assert logger.turns == ["failed"]
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
    data.place = ""
    trainer.fit(net, datamodule=data)
    assert trainer.state.finished


def test_the_places_are_really_reached(quick: Any) -> None:
    assert len(CALLBACK_HOOKS) > 20
    assert is_overridden("on_train_start", Ends("on_train_start", None), Callback)
    assert not is_overridden("on_fit_start", Ends("on_train_start", None), Callback)
    assert issubclass(Data, LightningDataModule)
