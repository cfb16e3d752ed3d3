"""Names, parameters and defaults are those that the field knows; every exception is listed, with its reason."""

import runpy
from pathlib import Path

import pytest
import yaml

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "surface.py"))
GROUPS: dict[str, dict[str, str]] = yaml.safe_load(TOOL["DEVIATIONS"].read_text())
LISTED = [name for names in GROUPS.values() for name in names]


def test_what_differs_is_listed_and_what_is_listed_differs():
    listed = {name: what for names in GROUPS.values() for name, what in names.items()}
    found = TOOL["differences"]()
    new = {name: what for name, what in found.items() if listed.get(name) != what}
    mended = sorted(name for name in listed if name not in found)
    advice = "python tools/surface.py --write, and give what is new a reason, or mend it"
    assert {"new": new, "mended": mended} == {"new": {}, "mended": []}, advice


def test_every_exception_has_one_reason_in_a_whole_sentence():
    assert len(LISTED) == len(set(LISTED))
    assert TOOL["UNEXPLAINED"] not in GROUPS
    assert all(reason[0].isupper() and reason.endswith(".") for reason in GROUPS)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("lightning.fabric", "Fabric"),
        ("lightning.fabric.plugins.environments.lightning", "LightningEnvironment"),  # a face of its own
        ("lightning.fabric.plugins.precision.amp", "MixedPrecision"),
        ("lightning.pytorch.utilities.types", "STEP_OUTPUT"),  # deep there, in the nearest face here
        ("lightning.pytorch.cli", "LightningCLI"),
    ],
)
def test_a_name_is_found_in_the_nearest_face(module, name):
    assert TOOL["find"](module, name) is not TOOL["NOWHERE"]


def test_a_name_that_nobody_has_is_not_found():
    assert TOOL["find"]("lightning.fabric.plugins", "WarpDrive") is TOOL["NOWHERE"]


def ours(a, b=1, *, c=None): ...


@pytest.mark.parametrize(
    ("theirs", "found"),
    [
        ([["a", "pos_or_kw"], ["b", "pos_or_kw", "1"], ["c", "kw_only", "None"]], {}),
        ([["a", "pos_or_kw"]], {}),  # ours may take more
        ([["a", "pos_or_kw"], ["d", "pos_or_kw"]], {"d": "missing"}),
        ([["a", "pos_or_kw"], ["b", "pos_or_kw", "2"]], {"b": "default 1, there 2"}),
        ([["b", "pos_or_kw", "1"], ["a", "pos_or_kw"]], {"b": "at another place", "a": "at another place"}),
        ([["a", "pos_or_kw"], ["c", "pos_or_kw", "None"]], {"c": "at another place"}),
        ([], {"a": "required here, unknown there"}),
        ([["a", "pos_or_kw"], ["more", "var_kw"]], {"**more": "missing"}),
    ],
)
def test_a_difference_of_parameters_is_seen(theirs, found):
    assert dict(TOOL["signature_differences"](theirs, ours, is_method=False)) == found
