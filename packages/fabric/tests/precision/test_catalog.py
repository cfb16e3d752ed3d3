"""`precision=` as `counts.md` lists it: every way to write each value, and what comes of it."""

import warnings

import pytest

from fulmen.fabric.errors import ConfigurationError, MissingPackageError
from fulmen.fabric.optional_packages import is_installed
from fulmen.fabric.precision.base import Precision
from fulmen.fabric.precision.catalog import PRECISIONS, make_precision, precision_name
from fulmen.fabric.precision.double import DoublePrecision
from fulmen.fabric.precision.half import HalfPrecision
from fulmen.fabric.precision.mixed import MixedPrecision

# written: (full name, class, name on the CPU)
VALUES = {
    64: ("64-true", DoublePrecision, "64-true"),
    32: ("32-true", Precision, "32-true"),
    16: ("16-mixed", MixedPrecision, "bf16-mixed"),
    "16-true": ("16-true", HalfPrecision, "16-true"),
    "16-mixed": ("16-mixed", MixedPrecision, "bf16-mixed"),
    "bf16-true": ("bf16-true", HalfPrecision, "bf16-true"),
    "bf16-mixed": ("bf16-mixed", MixedPrecision, "bf16-mixed"),
    "32-true": ("32-true", Precision, "32-true"),
    "64-true": ("64-true", DoublePrecision, "64-true"),
    "64": ("64-true", DoublePrecision, "64-true"),
    "32": ("32-true", Precision, "32-true"),
    "16": ("16-mixed", MixedPrecision, "bf16-mixed"),
    "bf16": ("bf16-mixed", MixedPrecision, "bf16-mixed"),
    None: ("32-true", Precision, "32-true"),
}


@pytest.mark.parametrize("written", VALUES)
def test_every_way_to_write_a_precision(written):
    full_name, kind, on_cpu = VALUES[written]
    assert precision_name(written) == full_name
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = make_precision(full_name, "cpu")
    assert type(made) is kind
    assert made.precision == on_cpu
    assert bool(caught) == (on_cpu != full_name)
    assert make_precision(full_name, "cuda").precision == full_name


@pytest.mark.parametrize("written", ["foo", 8, True, 16.0, ["16"], "", "fp16"])
def test_what_is_no_precision_is_answered(written):
    with pytest.raises(ConfigurationError, match=r"Trainer\(precision=.* names no precision"):
        precision_name(written, "Trainer")


@pytest.mark.skipif(is_installed("transformer_engine"), reason="it is installed")
@pytest.mark.parametrize("name", ["transformer-engine", "transformer-engine-float16"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(name):
    assert PRECISIONS[name] == name
    with pytest.raises(MissingPackageError, match=r'python -m pip install "transformer-engine\[pytorch\]"'):
        make_precision(name, "cuda")
