import io
import pickle
import warnings
from argparse import Namespace
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.hparams import (
    AttributeDict,
    HyperparametersMixin,
    clean_namespace,
    given_hyperparameters,
    hyperparameter_entries,
    is_picklable,
    lightning_getattr,
    lightning_hasattr,
    lightning_setattr,
    loadable_hparams,
    save_hyperparameters,
)
from fulmen.trainer.core.module import LightningModule


class Model(LightningModule):
    def __init__(self, width=3, lr=0.1):
        super().__init__()
        self.save_hyperparameters()


def test_all_arguments():
    model = Model(lr=0.5)
    assert dict(model.hparams) == {"width": 3, "lr": 0.5}
    assert model.hparams.lr == 0.5
    assert hyperparameter_entries(model) == {"hparams_name": "kwargs", "hyper_parameters": {"width": 3, "lr": 0.5}}


def test_some_by_name_and_some_ignored():
    class Named(LightningModule):
        def __init__(self, a, b, c):
            super().__init__()
            self.save_hyperparameters("a", "b", ignore="b")

    class Ignoring(LightningModule):
        def __init__(self, a, b, c):
            super().__init__()
            self.save_hyperparameters(ignore=["a", "c"], logger=False)

    assert dict(Named(1, 2, 3).hparams) == {"a": 1}
    assert dict(Ignoring(1, 2, 3).hparams) == {"b": 2}
    assert Named(1, 2, 3).logs_hparams
    assert not Ignoring(1, 2, 3).logs_hparams


@pytest.mark.parametrize("kind", [dict, Namespace])
def test_one_container(kind):
    class Configured(LightningModule):
        def __init__(self, conf, other=1):
            super().__init__()
            self.save_hyperparameters(conf)

    model = Configured(kind(a=1, b={"c": 2}))
    assert model.hparams.a == 1
    assert hyperparameter_entries(model) == {"hparams_name": "conf", "hyper_parameters": {"a": 1, "b": {"c": 2}}}


def test_parent_and_child_both_save():
    class Parent(LightningModule):
        def __init__(self, lr):
            super().__init__()
            self.save_hyperparameters("lr")

    class Child(Parent):
        def __init__(self, extra, **kw):
            super().__init__(**kw)
            self.save_hyperparameters()

    assert hyperparameter_entries(Child(extra=5, lr=9)) == {
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 9, "extra": 5},
    }


def test_fields_of_a_dataclass():
    @dataclass(eq=False)
    class Fields(LightningModule):
        lr: float = 0.1
        width: int = 2

        def __post_init__(self):
            super().__init__()
            self.save_hyperparameters()

    assert dict(Fields(lr=0.2).hparams) == {"lr": 0.2, "width": 2}


def test_datamodules_have_keys_of_their_own():
    class Data(LightningDataModule):
        def __init__(self, root="x", n=2):
            super().__init__()
            self.save_hyperparameters()

    assert hyperparameter_entries(Data()) == {
        "datamodule_hparams_name": "kwargs",
        "datamodule_hyper_parameters": {"root": "x", "n": 2},
    }


def test_nothing_saved_nothing_written():
    assert hyperparameter_entries(LightningModule()) == {}
    assert LightningModule().hparams_initial == {}


def test_bad_arguments():
    class Bad(LightningModule):
        def __init__(self, lr, what):
            super().__init__()
            self.save_hyperparameters(*what)

    with pytest.raises(ValueError, match=r"save_hyperparameters\(3\)"):
        Bad(1, [3])
    with pytest.raises(ConfigurationError, match="names 'learning_rate'"):
        Bad(1, ["learning_rate"])
    with pytest.raises(ConfigurationError, match="2 objects"):
        Bad(1, [{"a": 1}, {"b": 2}])


def test_initial_values_stay_when_hparams_change():
    model = Model()
    model.hparams.lr = 9
    model.hparams_initial["width"] = 9
    assert (model.hparams_initial.lr, model.hparams_initial.width) == (0.1, 3)


def test_removing():
    model = Model()
    model.remove_ignored_hparams(["lr", "unknown"])
    assert dict(model.hparams) == dict(model.hparams_initial) == {"width": 3}


def test_a_module_as_hyperparameter_is_warned_about_and_not_copied():
    class Wrapping(LightningModule):
        def __init__(self, inner):
            super().__init__()
            self.save_hyperparameters()

    layer = torch.nn.Linear(1, 1)
    with pytest.warns(UserWarning, match="'inner' is a torch.nn.Module"):
        model = Wrapping(layer)
    assert model.hparams_initial.inner is layer


def test_a_command_line_knows_the_arguments_better():
    class Inner(LightningModule):
        def __init__(self, a=1):
            super().__init__()
            self.save_hyperparameters()

    class Outer(LightningModule):
        def __init__(self, encoder):
            super().__init__()
            self.inner = Inner()
            self.save_hyperparameters()

    with given_hyperparameters({"encoder": {"class_path": "x.Y"}}, "cli.make", cls=Outer):
        model = Outer(object())
    assert dict(model.hparams) == {"encoder": {"class_path": "x.Y"}, "_instantiator": "cli.make"}
    assert dict(model.inner.hparams) == {"a": 1}
    assert dict(Inner().hparams) == {"a": 1}


def test_the_function_form():
    class Holder(HyperparametersMixin):
        def __init__(self, a):
            save_hyperparameters(self, "a")

    assert dict(Holder(4).hparams) == {"a": 4}


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner), st.tuples(inner, inner)),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(), plain))
def test_plain_data_goes_through_a_file_as_it_is(hparams):
    file = io.BytesIO()
    torch.save(loadable_hparams(AttributeDict(hparams)), file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == hparams


class Mode(StrEnum):
    A = "a"


class Other(Enum):
    A = object()


def test_what_is_no_data_is_left_out_of_files():
    hparams = {
        "keep": {1, 2},
        "path": Path("/x"),
        "mode": Mode.A,
        "space": Namespace(a=1),
        "loss": torch.nn.MSELoss(),
        "nested": {"f": len, "g": [1, Other.A]},
        "type": torch.float16,
    }
    with pytest.warns(UserWarning, match="left out of checkpoints") as caught:
        found = loadable_hparams(hparams, owner="M")
    assert found == {
        "keep": {1, 2},
        "path": "/x",
        "mode": "a",
        "space": {"a": 1},
        "nested": {"g": [1]},
        "type": torch.float16,
    }
    said = " ".join(str(warning.message) for warning in caught)
    assert all(key in said for key in ("'loss'", "'nested.f'", "'nested.g[1]'"))


def test_unpicklable_values_are_dropped():
    hparams = {"a": 1, "f": lambda: 0}
    with pytest.warns(UserWarning, match="'f' was removed"):
        clean_namespace(hparams)
    assert hparams == {"a": 1}
    assert is_picklable(1)
    assert not is_picklable(lambda: 0)


def test_attributes_are_found_in_module_hparams_and_datamodule():
    model = Model()
    model.rate = 1
    data = LightningDataModule()
    data.batch_size = 4
    model.trainer = Namespace(datamodule=data)
    assert [lightning_hasattr(model, name) for name in ("rate", "lr", "batch_size", "none")] == [True] * 3 + [False]
    lightning_setattr(model, "lr", 7)
    lightning_setattr(model, "batch_size", 8)
    lightning_setattr(model, "rate", 9)
    assert [lightning_getattr(model, name) for name in ("lr", "batch_size", "rate")] == [7, 8, 9]
    assert (model.hparams.lr, data.batch_size, model.rate) == (7, 8, 9)
    with pytest.raises(AttributeError, match="'none' is found neither"):
        lightning_setattr(model, "none", 1)


def test_hparams_survive_pickling():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dict(pickle.loads(pickle.dumps(Model(lr=2))).hparams) == {"width": 3, "lr": 2}
