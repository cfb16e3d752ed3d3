"""What a user of Fabric may get wrong is answered at once, in three sentences that quote it and name the fix."""

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fulmen.fabric.errors import MisconfigurationException
from fulmen.fabric.fabric import Fabric
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.precision.double import DoublePrecision


class Net(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 1)

    def other(self, x: torch.Tensor) -> torch.Tensor:
        return self(x)


class Listens:
    def on_epoch_end(self) -> None: ...


class Given:
    """What a user has at hand."""

    def __init__(self) -> None:
        self.fabric = cpu()
        self.net = Net()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.loader = DataLoader([1])
        self.model, self.stepper = self.fabric.setup(net := Net(), torch.optim.SGD(net.parameters(), lr=0.1))


def cpu(**flags: Any) -> Fabric:
    return Fabric(accelerator="cpu", **flags)


def two(strategy: str = "ddp_spawn") -> Fabric:
    return cpu(strategy=strategy, devices=2)


def on_meta() -> nn.Linear:
    with torch.device("meta"):
        return nn.Linear(1, 1)


def forward_past_the_precision() -> None:
    cpu(precision="bf16-mixed").setup(Net()).other(torch.ones(1, 2))


def saved(fabric: Fabric, **state: Any) -> str:
    fabric.save("saved.ckpt", state)
    return "saved.ckpt"


# What is done with what is given; the built-in type that the error is too; how it begins. The numbers are those of
# the field's table of mistakes; "silent" and "deep" are not answered there, or only by a traceback from inside.
CASES: dict[str, tuple[Callable[[Given], object], type[Exception], str]] = {
    "307 accelerator": (lambda g: Fabric(accelerator="foo"), ValueError, "Fabric(accelerator='foo') names no"),
    "308 no GPU": (lambda g: Fabric(accelerator="gpu"), RuntimeError, "Fabric(accelerator='gpu') asks for"),
    "309 strategy": (lambda g: cpu(strategy="foo"), ValueError, "Fabric(strategy='foo') names no"),
    "310 precision": (lambda g: cpu(precision="foo"), ValueError, "Fabric(precision='foo') names no"),
    "311 plugin": (lambda g: cpu(plugins=["foo"]), TypeError, "Fabric(plugins=...) got 'foo'"),
    "312 precision twice": (
        lambda g: cpu(precision="64-true", plugins=[DoublePrecision()]),
        ValueError,
        "Fabric got the precision twice, as precision='64-true' and as the plugin DoublePrecision",
    ),
    "313 no devices": (lambda g: cpu(devices=0), ValueError, "Fabric(devices=0)"),
    "314 no machines": (lambda g: cpu(num_nodes=0), ValueError, "Fabric(num_nodes=0)"),
    "315 not launched": (lambda g: two().setup(g.net), RuntimeError, "fabric.setup() was called before"),
    "316 module twice": (lambda g: g.fabric.setup(g.model), ValueError, "fabric.setup(...) got a FabricModule"),
    "317 optimizer twice": (
        lambda g: g.fabric.setup(g.net, g.stepper),
        ValueError,
        "fabric.setup(...) got a FabricOpt",
    ),
    "318 module twice": (lambda g: g.fabric.setup_module(g.model), ValueError, "fabric.setup(...) got a FabricM"),
    "319 no optimizer": (lambda g: g.fabric.setup_optimizers(), ValueError, "fabric.setup_optimizers() got no"),
    "319 optimizer twice": (lambda g: g.fabric.setup_optimizers(g.stepper), ValueError, "fabric.setup_optimizers("),
    "320 no loader": (lambda g: g.fabric.setup_dataloaders(), ValueError, "fabric.setup_dataloaders() got no"),
    "321 no torch loader": (lambda g: g.fabric.setup_dataloaders([1]), TypeError, "fabric.setup_dataloaders([1])"),
    "322 loader twice": (
        lambda g: g.fabric.setup_dataloaders(g.fabric.setup_dataloaders(g.loader)),
        ValueError,
        "fabric.setup_dataloaders(...) got a FabricDataLoader",
    ),
    "323 clip how": (
        lambda g: g.fabric.clip_gradients(g.model, g.stepper),
        ValueError,
        "fabric.clip_gradients(clip_val=None, max_norm=None)",
    ),
    "324 clip twice": (
        lambda g: g.fabric.clip_gradients(g.model, g.stepper, clip_val=1, max_norm=2),
        ValueError,
        "fabric.clip_gradients(clip_val=1, max_norm=2)",
    ),
    "325 not set up": (lambda g: g.fabric.no_backward_sync(g.net), TypeError, "fabric.no_backward_sync(Net(...))"),
    "326 launch what": (lambda g: g.fabric.launch(3), TypeError, "fabric.launch(3)"),
    "327 no parameter": (lambda g: g.fabric.launch(lambda: None), TypeError, "fabric.launch(<lambda>)"),
    "328 launch what": (lambda g: two().launch(), TypeError, "fabric.launch() got no function"),
    "329 filter": (lambda g: g.fabric.save("x", {"a": 1}, filter=3), TypeError, "filter=3 is no dictionary"),
    "330 filter": (lambda g: g.fabric.save("x", {"a": 1}, filter={"b": print}), ValueError, "filter={'b': ...}"),
    "331 filter": (lambda g: g.fabric.save("x", {"a": 1}, filter={"a": 3}), TypeError, "filter={'a': 3}"),
    "334 deep: no tensor": (lambda g: g.fabric.backward(0.5), TypeError, "fabric.backward(0.5)"),
    "335 silent: a hook with a typing error": (
        lambda g: cpu(callbacks=Listens()).call("on_epoch_edn"),
        ValueError,
        "fabric.call('on_epoch_edn') calls no method of any callback. Listens has 'on_epoch_end'",
    ),
    "336 silent: a method that is not marked": (
        lambda g: forward_past_the_precision(),
        RuntimeError,
        "`other` of Net ran a forward past the precision 'bf16-mixed'",
    ),
    "337 no method": (lambda g: g.model.mark_forward_method("nope"), AttributeError, "mark_forward_method('nope')"),
    # further mistakes, of the arguments' types and values
    "accelerator is no name": (lambda g: Fabric(accelerator=3), ValueError, "Fabric(accelerator=3)"),
    "accelerator None": (lambda g: Fabric(accelerator=None), ValueError, "Fabric(accelerator=None)"),
    "tpu without its package": (lambda g: Fabric(accelerator="tpu"), ModuleNotFoundError, "Fabric(accelerator='tpu')"),
    "strategy is no name": (lambda g: cpu(strategy=3), ValueError, "Fabric(strategy=3)"),
    "devices of a CPU": (lambda g: cpu(devices=[0, 1]), TypeError, "Fabric(devices=[0, 1])"),
    "all devices of a CPU": (lambda g: cpu(devices=-1), TypeError, "Fabric(devices=-1)"),
    "devices None": (lambda g: cpu(devices=None), TypeError, "Fabric(devices=None)"),
    "machines as text": (lambda g: cpu(num_nodes="2"), ValueError, "Fabric(num_nodes='2')"),
    "machines without a place": (lambda g: cpu(num_nodes=2).launch(), ValueError, "num_nodes=2 was asked for"),
    "precision is no name": (lambda g: cpu(precision=[16]), ValueError, "Fabric(precision=[16])"),
    "precision plugin twice": (
        lambda g: cpu(plugins=[Precision(), Precision()]),
        ValueError,
        "Fabric(plugins=...) got two Precision",
    ),
    "callback class": (lambda g: cpu(callbacks=[Listens]), TypeError, "Fabric(callbacks=...) got the class Listens"),
    "logger name": (lambda g: cpu(loggers="csv"), TypeError, "Fabric(loggers=...) got 'csv'"),
    "no logger": (lambda g: cpu().logger, ValueError, "`fabric.logger` was read"),
    "setup of a number": (lambda g: g.fabric.setup(3), TypeError, "fabric.setup(3)"),
    "setup of a class": (lambda g: g.fabric.setup(Net), TypeError, "fabric.setup(<class"),
    "optimizers in a list": (lambda g: g.fabric.setup(g.net, [g.optimizer]), TypeError, "fabric.setup(list(...))"),
    "module as optimizer": (lambda g: g.fabric.setup(g.net, g.net), TypeError, "fabric.setup(Net("),
    "parameters without data": (
        lambda g: g.fabric.setup(net := on_meta(), torch.optim.SGD(net.parameters(), lr=1)),
        ValueError,
        "fabric.setup(...) got a SGD of parameters on the meta device",
    ),
    "barrier before launch": (lambda g: two().barrier(), RuntimeError, "fabric.barrier() was called before"),
    "module before launch": (lambda g: two().init_module(), RuntimeError, "fabric.init_module() was called"),
    "silent: no such rank": (lambda g: g.fabric.broadcast(1, src=5), ValueError, "fabric.broadcast(src=5)"),
    "deep: no gradients": (lambda g: g.fabric.backward(torch.ones(1)), ValueError, "fabric.backward(loss)"),
    "deep: negative limit": (
        lambda g: g.fabric.clip_gradients(g.model, g.stepper, clip_val=-1),
        ValueError,
        "fabric.clip_gradients(clip_val=-1, max_norm=None)",
    ),
    "silent: a limit that is no number": (
        lambda g: g.fabric.clip_gradients(g.model, g.stepper, max_norm=float("nan")),
        ValueError,
        "fabric.clip_gradients(clip_val=None, max_norm=nan)",
    ),
    "deep: clip the wrong way round": (
        lambda g: g.fabric.clip_gradients(g.stepper, g.model, max_norm=1.0),
        TypeError,
        "fabric.clip_gradients(SGD, Net, ...)",
    ),
    "silent: metrics without names": (lambda g: g.fabric.log_dict([1]), TypeError, "fabric.log_dict([1])"),
    "silent: a hook by no name": (lambda g: g.fabric.call(3), TypeError, "fabric.call(3)"),
    "deep: no path": (lambda g: g.fabric.save({"a": 1}, "x"), TypeError, "fabric.save({'a': 1}, ...)"),
    "deep: nothing by name to save": (lambda g: g.fabric.save("x", [1]), TypeError, "fabric.save(state=list(...))"),
    "deep: nothing by name to load": (
        lambda g: g.fabric.load(saved(g.fabric, a=1), g.model),
        TypeError,
        "fabric.load(state=FabricModule(...))",
    ),
    "deep: a dictionary as raw": (
        lambda g: g.fabric.load_raw(saved(g.fabric, a=1), {"a": 2}),
        TypeError,
        "fabric.load_raw(obj=dict(...))",
    ),
    "mark by number": (lambda g: g.model.mark_forward_method(3), TypeError, "mark_forward_method(3)"),
    "seed": (lambda g: Fabric.seed_everything("x"), TypeError, "seed_everything('x')"),
}
# What a missing or damaged file answers is no bad input: it is a CheckpointError.
FILES: dict[str, tuple[Callable[[Given], object], type[Exception], str]] = {
    "332 no file": (lambda g: g.fabric.load("nothing.ckpt"), FileNotFoundError, "nothing.ckpt"),
    "333 no such key": (lambda g: g.fabric.load(saved(g.fabric, a=1), {"b": 2}), KeyError, "'b'"),
}


def sentences(text: str) -> int:
    return len(re.findall(r"[.:](?=\s|$)", text))


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    monkeypatch.chdir(tmp_path)
    return Given()


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_answered_at_once(case: str, given: Given) -> None:
    act, kind, begins = CASES[case]
    if case.startswith("308") and torch.cuda.is_available():
        pytest.skip("here is a GPU")
    with pytest.raises(kind) as caught:
        act(given)
    text = str(caught.value)
    assert isinstance(caught.value, MisconfigurationException)
    assert text.startswith(begins), text
    assert sentences(text) >= 3, text
    assert len(text) < 500, text
    assert set(os.listdir()) <= {"saved.ckpt"}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_not_what_was_asked_for_is_named(case: str, given: Given) -> None:
    act, kind, quoted = FILES[case]
    with pytest.raises(kind) as caught:
        act(given)
    assert quoted in str(caught.value)
    assert sentences(str(caught.value)) >= 3


def test_keys_that_are_missing_may_be_asked_for(given: Given) -> None:
    state = {"a": 0, "b": 2}
    given.fabric.load(saved(given.fabric, a=1), state, strict=False)
    assert state == {"a": 1, "b": 2}


def test_an_optimizer_of_another_module_is_noticed(given: Given) -> None:
    with pytest.warns(
        UserWarning, match=r"fabric\.setup\(Net\(\.\.\.\), SGD\(\.\.\.\)\) got an optimizer that steps no"
    ):
        given.fabric.setup(Net(), given.optimizer)


def test_what_is_right_is_not_refused(given: Given) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fabric = cpu(callbacks=[Listens(), object()])
        fabric.call("on_epoch_start")  # nobody listens, and it is no typing error
        fabric.call("on_epoch_end")
        fabric.launch(lambda fabric: None)
        # One process in full precision: a method that calls forward gives what a call gives.
        given.model.other(torch.ones(1, 2)).sum().backward()
        mixed = cpu(precision="bf16-mixed").setup(Net())
        mixed.mark_forward_method("other")
        mixed.other(torch.ones(1, 2)).sum().backward()
        with torch.no_grad():
            mixed.other(torch.ones(1, 2))
