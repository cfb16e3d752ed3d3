import os
from argparse import Namespace
from enum import Enum
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings

from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer.core.hparams_files import (
    convert,
    load_hparams_from_tags_csv,
    load_hparams_from_yaml,
    save_hparams_to_tags_csv,
    save_hparams_to_yaml,
    update_hparams,
)

scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5))
plain = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(max_size=3), inner)), max_leaves=6
)
each_example_writes = settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@each_example_writes
@given(st.dictionaries(st.text(max_size=3), plain))
def test_yaml_round_trip(tmp_path, hparams):
    path = tmp_path / "hparams.yaml"
    save_hparams_to_yaml(path, hparams)
    assert load_hparams_from_yaml(path, use_omegaconf=False) == hparams
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == hparams


class Mode(Enum):
    FAST = 1


def test_yaml_is_plain_and_sorted(tmp_path):
    path = tmp_path / "new" / "hparams.yaml"
    hparams = {
        "f": torch.nn.ReLU,
        "b": {"c": (1, 2)},
        "a": 1,
        "d": torch.float16,
        "e": Mode.FAST,
        "g": Path("x/y"),
        "t": torch.tensor(2),
        "n": Namespace(k=1),
    }
    save_hparams_to_yaml(path, hparams)
    text = path.read_text()
    assert text.startswith("a: 1\nb:\n  c:\n  - 1\n  - 2\nd: torch.float16\ne: FAST\n")
    assert yaml.safe_load(text)["f"] == "torch.nn.modules.activation.ReLU"
    assert yaml.safe_load(text)["g"] == "x/y"
    assert yaml.safe_load(text)["t"] == 2
    assert yaml.safe_load(text)["n"] == {"k": 1}
    assert os.listdir(path.parent) == ["hparams.yaml"]


def test_objects_become_their_class_name_with_a_warning(tmp_path):
    path = tmp_path / "hparams.yaml"
    with pytest.warns(UserWarning, match="'model' is written to YAML as 'Object' only"):
        save_hparams_to_yaml(path, {"model": type("Object", (), {})()})
    assert yaml.safe_load(path.read_text()) == {"model": "Object"}


def test_no_hparams_is_an_empty_mapping(tmp_path):
    save_hparams_to_yaml(tmp_path / "h.yaml", {})
    assert load_hparams_from_yaml(tmp_path / "h.yaml") == {}


def test_python_tags_are_read_as_data(tmp_path):
    path = tmp_path / "h.yaml"
    path.write_text(
        "f: !!python/name:torch.nn.modules.activation.ReLU ''\n"
        "t: !!python/tuple [1, 2]\n"
        "o: !!python/object/apply:os.system ['touch ran']\n"
        "d: !!python/object/new:dict {a: 1}\n"
    )
    assert load_hparams_from_yaml(path) == {
        "f": "torch.nn.modules.activation.ReLU",
        "t": (1, 2),
        "o": ["touch ran"],
        "d": {"a": 1},
    }


def test_bad_files(tmp_path):
    path = tmp_path / "h.yaml"
    path.write_text("a: [1")
    with pytest.raises(ConfigurationError, match="cannot be read as YAML"):
        load_hparams_from_yaml(path)
    path.write_text("- 1")
    with pytest.raises(ConfigurationError, match="holds a list"):
        load_hparams_from_yaml(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigurationError, match=r"columns \['a', 'b'\]"):
        load_hparams_from_tags_csv(path)
    with pytest.raises(ConfigurationError, match="hparams=3"):
        save_hparams_to_yaml(path, 3)
    with pytest.warns(UserWarning, match=r"none.yaml' is not there"):
        assert load_hparams_from_yaml(tmp_path / "none.yaml") == {}
    with pytest.warns(UserWarning, match=r"none.csv' is not there"):
        assert load_hparams_from_tags_csv(tmp_path / "none.csv") == {}


def test_csv_round_trip(tmp_path):
    hparams = {"lr": 0.1, "name": "adam, fused", "layers": [1, 2], "none": None}
    save_hparams_to_tags_csv(tmp_path / "tags.csv", Namespace(**hparams))
    assert (tmp_path / "tags.csv").read_text().startswith("key,value\n")
    assert load_hparams_from_tags_csv(tmp_path / "tags.csv") == hparams


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none()))
def test_convert_reads_literals(value):
    assert convert(repr(value)) == value


def test_convert_keeps_other_text():
    assert convert("adam") == "adam"
    assert convert("__import__('os')") == "__import__('os')"


def test_update_goes_into_dicts():
    hparams = {"a": {"b": 1, "c": 2}, "d": 3}
    update_hparams(hparams, {"a": {"b": 9}, "d": {"e": 1}})
    assert hparams == {"a": {"b": 9, "c": 2}, "d": {"e": 1}}


def test_yaml_beyond_all_bounds_is_refused(tmp_path):
    storeys = "a0: &a0 [1, 2]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    for text, match in {
        storeys: "names the same values over and over, by anchors",
        "x: " + "9" * 10_000: "cannot be read as YAML.*Correct the file",
        "x: " + "[" * 10_000: "cannot be read as YAML.*Correct the file",
    }.items():
        (tmp_path / "h.yaml").write_text(text)
        with pytest.raises(ConfigurationError, match=match):
            load_hparams_from_yaml(tmp_path / "h.yaml")
