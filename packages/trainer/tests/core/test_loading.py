import io
import pickle
import traceback

import pytest
import torch

from fulmen.fabric.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointNotFoundError,
    ConfigurationError,
    MisconfigurationException,
)
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.hparams import hyperparameter_entries
from fulmen.trainer.core.module import LightningModule


class Model(LightningModule):
    def __init__(self, width=3, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 2)
        self.seen = None

    def on_load_checkpoint(self, checkpoint):
        self.seen = checkpoint.get("extra")


class OtherModel(Model):
    def __init__(self, depth=1, **kwargs):
        super().__init__(**kwargs)


def write(path, module, **more):
    torch.save({"state_dict": module.state_dict(), **hyperparameter_entries(module), **more}, path)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    return write(tmp_path / "m.ckpt", Model(width=5), extra=7)


def test_module_comes_back_with_arguments_and_weights(checkpoint):
    module = Model.load_from_checkpoint(checkpoint)
    saved = torch.load(checkpoint)["state_dict"]
    assert dict(module.hparams) == {"width": 5, "lr": 0.1}
    assert all(torch.equal(value, saved[name]) for name, value in module.state_dict().items())
    assert module.seen == 7
    assert module.training


def test_an_open_file_will_do(checkpoint):
    assert Model.load_from_checkpoint(io.BytesIO(checkpoint.read_bytes())).hparams.width == 5


def test_keywords_win(checkpoint):
    assert dict(Model.load_from_checkpoint(checkpoint, lr=9).hparams) == {"width": 5, "lr": 9}


@pytest.mark.parametrize(("name", "text"), [("h.yaml", "width: 5\nlr: 3"), ("h.csv", "key,value\nwidth,5\nlr,3\n")])
def test_hparams_from_a_file(checkpoint, name, text):
    file = checkpoint.with_name(name)
    file.write_text(text)
    assert Model.load_from_checkpoint(checkpoint, hparams_file=file).hparams.lr == 3


def test_hparams_from_json_is_an_error(checkpoint):
    with pytest.raises(ValueError, match=r"hparams_file='x.json'"):
        Model.load_from_checkpoint(checkpoint, hparams_file="x.json")


def test_arguments_that_init_does_not_take_are_left_out(tmp_path):
    class Picky(LightningModule):
        def __init__(self, a):
            super().__init__()
            self.a = a

    path = tmp_path / "p.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": {"a": 1, "b": 2}, "hparams_name": "kwargs"}, path)
    with pytest.warns(UserWarning, match="holds no weights"):
        assert Picky.load_from_checkpoint(path).a == 1


def test_one_container_goes_where_it_came_from(tmp_path):
    class Configured(LightningModule):
        def __init__(self, conf, scale=1):
            super().__init__()
            self.save_hyperparameters(conf)
            self.layer = torch.nn.Linear(conf.width if hasattr(conf, "width") else conf["width"], 1)
            self.scale = scale

    path = write(tmp_path / "c.ckpt", Configured({"width": 4, "lr": 1}))
    module = Configured.load_from_checkpoint(path, lr=2, scale=3)
    assert dict(module.hparams) == {"width": 4, "lr": 2}
    assert (module.layer.in_features, module.scale) == (4, 3)


@pytest.mark.parametrize("key", ["hparams", "module_arguments"])
def test_hparams_under_their_old_keys(tmp_path, key):
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": Model(4).state_dict(), key: {"width": 4}}, path)
    assert Model.load_from_checkpoint(path).layer.in_features == 4


def test_missing_arguments_are_named(tmp_path):
    class Needy(LightningModule):
        def __init__(self, size):
            super().__init__()
            self.layer = torch.nn.Linear(size, 1)

    path = write(tmp_path / "n.ckpt", Needy(2))
    with pytest.raises(TypeError, match="lacks a value for 'size'") as caught:
        Needy.load_from_checkpoint(path)
    assert isinstance(caught.value, MisconfigurationException)
    assert Needy.load_from_checkpoint(path, size=2).layer.in_features == 2


def test_on_an_object_it_is_an_error_but_may_be_looked_at(checkpoint):
    module = Model()
    assert callable(module.load_from_checkpoint)
    with pytest.raises(TypeError, match="was called on an object of Model"):
        module.load_from_checkpoint(checkpoint)


def test_missing_and_truncated_files(checkpoint):
    with pytest.raises(FileNotFoundError, match="nope"):
        Model.load_from_checkpoint(checkpoint.with_name("nope.ckpt"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:-200])
    with pytest.raises(CheckpointDamagedError, match=r"m\.ckpt"):
        Model.load_from_checkpoint(checkpoint)
    assert issubclass(CheckpointNotFoundError, FileNotFoundError)


class Trap:
    ran = False

    def __reduce__(self):
        return setattr, (Trap, "ran", True)


def test_code_in_a_file_is_not_run(tmp_path):
    path = tmp_path / "trap.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": {"width": Trap()}}, path)
    Trap.ran = False
    with pytest.raises(CheckpointError):
        Model.load_from_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError):
        Model.load_from_checkpoint(io.BytesIO(path.read_bytes()))
    assert Trap.ran is False


def test_differences_of_weights(checkpoint):
    class Bigger(Model):
        def __init__(self, width=3, lr=0.1):
            super().__init__(width, lr)
            self.more = torch.nn.Linear(1, 1)

    class Lenient(Bigger):
        def __init__(self, width=3, lr=0.1):
            super().__init__(width, lr)
            self.strict_loading = False

    with pytest.raises(RuntimeError, match=r"more\.weight"):
        Bigger.load_from_checkpoint(checkpoint)
    with pytest.warns(UserWarning, match=r"more\.weight"):
        Bigger.load_from_checkpoint(checkpoint, strict=False)
    with pytest.warns(UserWarning, match=r"more\.weight"):
        Lenient.load_from_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"strict=True\) contradicts .*Lenient\.strict_loading=False"):
        Lenient.load_from_checkpoint(checkpoint, strict=True)


def test_layers_made_in_configure_model_are_there(tmp_path):
    class Late(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = None

        def configure_model(self):
            if self.layer is None:
                self.layer = torch.nn.Linear(2, 2)

    late = Late()
    late.configure_model()
    found = Late.load_from_checkpoint(write(tmp_path / "l.ckpt", late))
    assert torch.equal(found.layer.weight, late.layer.weight)


def test_device_of_the_weights(tmp_path):
    path = write(tmp_path / "d.ckpt", Model())
    assert Model.load_from_checkpoint(path).device.type == "cpu"
    torch.save({"state_dict": {}, "t": torch.ones(1)}, path)
    # A tensor of a device that this machine lacks comes to the CPU.
    from fulmen.trainer.core.loading import _device_if_there

    storage = torch.ones(1).untyped_storage()
    assert _device_if_there(storage, "cuda:99") is storage
    assert _device_if_there(storage, "cpu") is None


def test_a_checkpoint_of_a_command_line(checkpoint):
    path = checkpoint.with_name("cli.ckpt")
    name = f"{OtherModel.__module__}.OtherModel"
    hparams = {"_class_path": name, "depth": 4, "width": 7, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
    torch.save({"state_dict": Model(7).state_dict(), "hyper_parameters": hparams, "hparams_name": "kwargs"}, path)
    found = LightningModule.load_from_checkpoint(path)
    assert type(found) is OtherModel
    assert dict(found.hparams) == {"depth": 4, "width": 7, "lr": 0.1} or set(found.hparams) == {"depth", "width"}
    hparams["_class_path"] = "os.system"
    torch.save({"state_dict": {}, "hyper_parameters": hparams}, path)
    with pytest.raises(ConfigurationError, match=r"checkpoint of 'os\.system'"):
        LightningModule.load_from_checkpoint(path)


def test_objects_that_a_command_line_built_must_be_passed(tmp_path):
    class Composed(LightningModule):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

    layer = torch.nn.Linear(1, 1)
    path = tmp_path / "c.ckpt"
    hparams = {"layer": {"class_path": "torch.nn.Linear", "init_args": {}}, "_instantiator": "x.y"}
    torch.save({"state_dict": Composed(layer).state_dict(), "hyper_parameters": hparams}, path)
    with pytest.raises(ConfigurationError, match="for 'layer' only a class path"):
        Composed.load_from_checkpoint(path)
    assert Composed.load_from_checkpoint(path, layer=torch.nn.Linear(1, 1)).layer.weight.equal(layer.weight)


def test_datamodules(tmp_path):
    class Data(LightningDataModule):
        def __init__(self, root="x", n=2):
            super().__init__()
            self.save_hyperparameters()
            self.position = 0

        def load_state_dict(self, state_dict):
            self.position = state_dict["position"]

    path = tmp_path / "d.ckpt"
    data = Data(n=5)
    torch.save({**hyperparameter_entries(data), Data.__qualname__: {"position": 3}}, path)
    found = Data.load_from_checkpoint(path, root="y")
    assert dict(found.hparams) == {"root": "y", "n": 5}
    assert found.position == 3
    with pytest.raises(TypeError, match="called on an object"):
        found.load_from_checkpoint(path)


def test_names_of_weights_steer_no_terminal(tmp_path):
    module = Model()
    weights = {**module.state_dict(), "\x1b[2Jdone\nAll is well": torch.ones(1)}
    torch.save({"state_dict": weights, **hyperparameter_entries(module)}, tmp_path / "a.ckpt")
    with pytest.raises(RuntimeError) as caught:
        Model.load_from_checkpoint(tmp_path / "a.ckpt")
    assert r'"\x1b[2Jdone\nAll is well"' in str(caught.value)
    assert "\x1b" not in "".join(traceback.format_exception(caught.value))
