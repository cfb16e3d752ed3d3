"""What constructors take: each argument of each public class is given what it cannot mean, and answers at once."""

from __future__ import annotations

import datetime
import inspect
import math
import re
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fulmen.fabric
from fulmen.fabric import arguments as module_under_test
from fulmen.fabric import checkpoint_io, loggers, measure, plugins, strategies
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, MisconfigurationException

NAN, OBJECT = float("nan"), object()
WRONG = [None, "x", b"x", -1, 0, 2.5, NAN, True, int, OBJECT, [], {}, [3], (2, 0)]
FACES = (fulmen.fabric, strategies, plugins, checkpoint_io, loggers, measure)
# What a class needs at least; those that are not here need nothing.
NEEDED: dict[str, dict[str, Any]] = {
    "ModelParallelStrategy": {"parallelize_fn": lambda module, mesh: module},
    "Pipeline": {"split_points": ["blocks.1"], "micro_batches": 4},
    "FSDPPrecision": {"precision": "32-true"},
    "HalfPrecision": {"precision": "16-true"},
    "MixedPrecision": {"precision": "16-mixed", "device": "cpu"},
    "CSVLogger": {"root_dir": "logs"},
    "TensorBoardLogger": {"root_dir": "logs"},
    "Fabric": {"accelerator": "cpu"},
}
# Tested where they live, with what they need: packages, clusters, a Fabric, an iteration.
ELSEWHERE = {
    "BitsandbytesPrecision",
    "TransformerEnginePrecision",
    "TorchAOPrecision",
    "DeepSpeedStrategy",
    "LSFEnvironment",
    "MPIEnvironment",
    "XLAEnvironment",
    "XLACheckpointIO",
    "SingleDeviceXLAStrategy",
    "XLAStrategy",
    "XLAFSDPStrategy",
    "ThroughputMonitor",
    "TrainingSpikeException",
}
# Of the wrong values, those that an argument takes; None where the class does without.
PARTS = {"accelerator": [None], "checkpoint_io": [None], "precision": [None], "cluster_environment": [None]}
BACKEND = {"process_group_backend": [None, "x"], "timeout": [None]}  # whether torch has it is seen at launch
DEVICES = {"parallel_devices": [None, []]}
VERSIONED = {"root_dir": ["x"], "name": [None, "x"], "version": [None, "x", 0], "prefix": [None, "x"]}
TAKEN: dict[str, dict[str, list[Any]]] = {
    "Fabric": {
        "precision": [None],
        "plugins": [None, []],
        "callbacks": [None, [], {}, OBJECT],
        "loggers": [None, []],
    },
    "SingleDeviceStrategy": {**PARTS, "device": []},
    "DataParallelStrategy": {**PARTS, **DEVICES},
    "DDPStrategy": {
        **PARTS,
        **BACKEND,
        **DEVICES,
        "ddp_comm_state": [None],
        "ddp_comm_hook": [None, int],
        "ddp_comm_wrapper": [None],
    },
    "FSDPStrategy": {
        **PARTS,
        **BACKEND,
        **DEVICES,
        "cpu_offload": [None, True],
        "mixed_precision": [None],
        "auto_wrap_policy": [None, []],
        "activation_checkpointing": [None, []],
        "activation_checkpointing_policy": [None, []],
        "device_mesh": [None],
    },
    "ModelParallelStrategy": {**BACKEND, "save_distributed_checkpoint": [True], "plan": [None], "pipeline": [None]},
    "FSDPPrecision": {"scaler": [None], "device": [None]},
    "MixedPrecision": {"scaler": [None]},
    "SLURMEnvironment": {"auto_requeue": [True], "requeue_signal": [None]},
    "WrappingCheckpointIO": {"checkpoint_io": [None]},
    "AsyncCheckpointIO": {"checkpoint_io": [None], "on_durable": [None, int]},
    "CSVLogger": VERSIONED,
    "TensorBoardLogger": {**VERSIONED, "default_hp_metric": [True], "sub_dir": [None, "x"]},
    "SpikeDetection": {
        "warmup": [0],
        "atol": [None, 0, 2.5],
        "rtol": [None, 0, 2.5],
        "exclude_batches_path": [None, "x"],
        "finite_only": [True],
    },
    "Throughput": {"available_flops": [None, 0, 2.5], "separator": ["x"]},
}


def public_classes() -> dict[str, type[Any]]:
    found: dict[str, type[Any]] = {}
    for face in FACES:
        for name in dir(face):
            one = getattr(face, name)
            if inspect.isclass(one) and one.__module__.startswith("fulmen.") and not inspect.isabstract(one):
                found[name] = one
    return found


def places() -> Iterator[tuple[str, str]]:
    for name, one in public_classes().items():
        if name in ELSEWHERE or one.__init__ is object.__init__:
            continue
        for parameter in inspect.signature(one).parameters.values():
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                yield name, parameter.name


def is_one_of(value: Any, values: list[Any]) -> bool:
    return any(type(value) is type(one) and (value is one or value == one) for one in values)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "argument"), list(places()))
def test_an_argument_is_refused_at_once_or_means_something(
    name: str, argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "TensorBoardLogger":
        pytest.importorskip("tensorboard")
    one = public_classes()[name]
    for value in WRONG:
        make = partial(one, **{**NEEDED.get(name, {}), argument: value})
        if is_one_of(value, TAKEN.get(name, {}).get(argument, [])):
            make()
            continue
        with pytest.raises(MisconfigurationException) as caught:
            make()
        assert argument in str(caught.value), str(caught.value)
        assert len(re.findall(r"[.:](?=\s|$)", str(caught.value))) >= 3, str(caught.value)
    assert list(tmp_path.iterdir()) == []


FURTHER: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: strategies.FSDPStrategy(sharding_strategy="HYBRID_SHARD", device_mesh=(2, 0)), ValueError, "(2, 0)"),
    (lambda: strategies.FSDPStrategy(sharding_strategy="HYBRID_SHARD", device_mesh=(-2, 2)), ValueError, "(-2, 2)"),
    (lambda: strategies.FSDPStrategy(sharding_strategy="HYBRID_SHARD", device_mesh=(True, 2)), TypeError, "True"),
    (lambda: strategies.DDPStrategy(static_graph="no"), TypeError, "static_graph='no'"),
    (lambda: strategies.DDPStrategy(bucket_cap_mb="25"), TypeError, "bucket_cap_mb='25'"),
    (lambda: strategies.DDPStrategy(bucket_cap_mb=-1), ValueError, "bucket_cap_mb=-1"),
    (lambda: strategies.DDPStrategy(timeout=30), TypeError, "timeout=30"),
    (lambda: strategies.DDPStrategy(parallel_devices=["cuda:0"]), TypeError, "parallel_devices=['cuda:0']"),
    (lambda: strategies.DDPStrategy(precision=plugins.Precision), TypeError, "precision=Precision(...)"),
    (lambda: strategies.ModelParallelStrategy(lambda module: module), TypeError, "two arguments"),
    (lambda: strategies.ModelParallelStrategy(nn.Linear), TypeError, "parallelize_fn=<class"),
    (lambda: strategies.ModelParallelStrategy(print, save_distributed_checkpoint="no"), TypeError, "'no'"),
    (lambda: plugins.MixedPrecision("bf16-mixed", "cuda:0"), ValueError, "device='cuda:0'"),
    (lambda: measure.Throughput(window_size=2.5), TypeError, "window_size=2.5"),  # type: ignore[arg-type]
    (lambda: measure.measure_flops(3, print), TypeError, "measure_flops(model=3)"),  # type: ignore[arg-type]
    (lambda: measure.measure_flops(nn.Linear(1, 1), 3), TypeError, "forward_fn=3"),  # type: ignore[arg-type]
    (lambda: measure.get_available_flops("cuda", torch.float16), TypeError, "device='cuda'"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "kind", "quoted"), FURTHER)
def test_further_mistakes_are_quoted(make: Callable[[], Any], kind: type[Exception], quoted: str) -> None:
    with pytest.raises(kind) as caught:
        make()
    assert isinstance(caught.value, MisconfigurationException)
    assert quoted in str(caught.value)
    assert len(re.findall(r"[.:](?=\s|$)", str(caught.value))) >= 3


def test_what_is_right_is_taken(tmp_path: Path) -> None:
    class Quacks:
        """A precision that is no subclass."""

        def forward_context(self) -> None: ...

    strategies.DDPStrategy(
        parallel_devices=(torch.device("cpu"),),  # type: ignore[arg-type]
        precision=Quacks(),  # type: ignore[arg-type]
        timeout=datetime.timedelta(minutes=1),
        static_graph=True,
        bucket_cap_mb=None,
    )
    strategies.ModelParallelStrategy(partial(lambda scale, module, mesh: module, 2))
    strategies.SingleDeviceStrategy(torch.device("cpu"))
    plugins.SLURMEnvironment(requeue_signal=signal.SIGINT)
    loggers.CSVLogger(tmp_path, name="", version="mine")
    measure.SpikeDetection(atol=float("inf"), rtol=None, exclude_batches_path=tmp_path)


@given(st.integers(), st.integers(0, 5))
def test_a_count_is_taken_exactly_from_its_lowest_on(value: int, lowest: int) -> None:
    check = partial(module_under_test.check_count, "Owner", "name", value, "It counts.", lowest)
    if value >= lowest:
        check()
    else:
        with pytest.raises(ConfigurationError, match=rf"Owner\(name={value}\) .* It counts\. Pass {lowest} or more\."):
            check()


@given(st.floats() | st.integers())
def test_an_amount_is_any_number_that_is_not_negative(value: float) -> None:
    check = partial(module_under_test.check_amount, "Owner", "name", value, "It measures.")
    if value >= 0:
        check()
    else:
        with pytest.raises(ConfigurationError, match=r"Owner\(name=.*It measures\."):
            check()


@given(st.floats() | st.integers(-(2**60), 2**60) | st.booleans() | st.fractions() | st.floats().map(torch.tensor))
def test_what_can_be_read_as_a_number_is_one_and_a_whole_one_has_no_fraction(value: Any) -> None:
    number = module_under_test.check_number("Owner", "name", value, "It is a number.")
    assert number == float(value) or math.isnan(number)
    whole = partial(module_under_test.check_whole, "Owner", "name", value, "It is a number.")
    if math.isfinite(number) and number == int(number):
        whole()
    else:
        with pytest.raises(
            ConfigurationError, match=r"Owner\(name=.* is no whole number\. It is a number\. Pass an int\."
        ):
            whole()


@given(st.none() | st.text() | st.binary() | st.lists(st.integers()) | st.just(torch.ones(2)))
def test_what_cannot_be_read_as_a_number_is_refused(value: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"(?s)Owner\(name=.* It is a number\. Pass a number\."):
        module_under_test.check_number("Owner", "name", value, "It is a number.")


def test_what_may_be_left_out_is_said() -> None:
    module_under_test.check_function("Owner", "name", None, "It is called.")
    with pytest.raises(ArgumentTypeError, match=r"Owner\(name=None\) got None\. It is called\. Pass a function\.$"):
        module_under_test.check_function("Owner", "name", None, "It is called.", may_be_none=False)
    with pytest.raises(ArgumentTypeError, match=r"Owner\(name=3\) got an int\. It is a time\. Pass one\."):
        module_under_test.check_kind("Owner", "name", 3, datetime.timedelta, "It is a time.", "one")


def test_long_values_are_not_printed_and_the_class_of_an_owner_is() -> None:
    with pytest.raises(ArgumentTypeError, match=r"^dict\(name=\.\.\.\) got a list\."):
        module_under_test.check_flag({}, "name", list(range(100)))
