"""A model is built as the checkpoint says, unless the user says otherwise; and a checkpoint is data."""

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fulmen.cli.checkpoint_arguments import Offered, mentions_checkpoint, offered_by, usable
from fulmen.cli.cli import LightningCLI
from fulmen.cli.parser import LightningArgumentParser
from fulmen.fabric.checkpoint_io.sharded import save_sharded
from fulmen.fabric.errors import CheckpointError
from fulmen.trainer.demos import BoringDataModule, BoringModel


@dataclass
class Shape:
    """Of a layer."""

    depth: int = 1
    rate: float = 0.5


class Net(BoringModel):
    def __init__(self, size: int, width: int = 3, shape: Shape = Shape(), rates: list[float] | None = None) -> None:  # noqa: B008
        super().__init__()
        self.save_hyperparameters()
        self.size, self.width, self.shape, self.rates = size, width, shape, rates


class Deep(Net):
    def __init__(self, size: int, width: int = 3, extra: int = 0) -> None:
        super().__init__(size, width)
        self.extra = extra


class Encoded(BoringModel):
    def __init__(self, encoder: torch.nn.Module | None = None, width: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder, self.width = encoder, width


class Data(BoringDataModule):
    def __init__(self, batch_size: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.batch_size = batch_size


THIS = __name__
sys.modules.setdefault(THIS, sys.modules[__name__])


def saved(path: Path, hparams: dict[str, Any], cls: str | None = None) -> str:
    """A checkpoint with these hyperparameters, as a command line leaves it."""
    module = BoringModel()
    checkpoint = {
        "state_dict": module.state_dict(),
        "pytorch-lightning_version": "2.6.6",
        "epoch": 0,
        "global_step": 0,
        "loops": {},
        "hyper_parameters": {
            **hparams,
            **({"_class_path": cls} if cls else {}),
            "_instantiator": "x.instantiate_module",
        },
    }
    torch.save(checkpoint, path)
    return str(path)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def built(*arguments: str, model: Any = Net, data: Any = None) -> Any:
    """What `test` builds: it stops before it runs."""

    class Stops(LightningCLI):
        def test(self, **_: Any) -> None: ...

    return Stops(model, data, args=["test", *arguments], save_config_callback=None)


def test_hyperparameters_are_defaults_and_the_command_line_wins(folder: Path) -> None:
    path = saved(folder / "c.ckpt", {"size": 9, "width": 7, "shape": {"depth": 5, "rate": 0.25}, "rates": [1.0]})
    (folder / "c.yaml").write_text(f"model: {{width: 4}}\nckpt_path: {path}\n")
    model = built(f"--ckpt_path={path}").model
    assert (model.size, model.width, model.shape, model.rates) == (9, 7, Shape(5, 0.25), [1.0])
    for arguments in (["--model.width=5", f"--ckpt_path={path}"], [f"--ckpt_path={path}", "--model.width=5"]):
        assert built(*arguments).model.width == 5
    model = built(f"--ckpt_path={path}", "--model.shape.depth=2").model
    assert model.shape == Shape(2, 0.25)
    model = built("--config=c.yaml").model
    assert (model.size, model.width) == (9, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FULMEN_MODEL__WIDTH", "6")
        patch.setenv("FULMEN_TEST__CKPT_PATH", path)
        assert (built().model.size, built().model.width) == (9, 6)


def test_a_folder_of_shards_has_them_too(folder: Path) -> None:
    state = torch.load(saved(folder / "c.ckpt", {"size": 9, "rates": [1.0]}), weights_only=True)
    save_sharded(folder / "shards.ckpt", state)
    model = built("--ckpt_path=shards.ckpt", "--model.width=5").model
    assert (model.size, model.width, model.rates) == (9, 5, [1.0])
    (folder / "empty").mkdir()
    assert offered_by(str(folder / "empty")) is None
    (folder / "shards.ckpt" / "meta.pt").write_bytes(b"other bytes")
    with pytest.raises(CheckpointError, match=r"shards\.ckpt"):
        built("--ckpt_path=shards.ckpt", "--model.size=1")


def test_a_difference_is_told(folder: Path) -> None:
    path = saved(folder / "c.ckpt", {"size": 9, "width": 7})
    with pytest.warns(UserWarning, match=r"width=5 \(it has 7\)"):
        built("--model.width=5", f"--ckpt_path={path}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built("--model.width=7", f"--ckpt_path={path}")


def test_they_are_in_the_config_that_is_saved_and_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(folder / "c.ckpt", {"size": 9})
    assert built(f"--ckpt_path={path}").config["test"]["model"]["size"] == 9
    with pytest.raises(SystemExit):
        built(f"--ckpt_path={path}", "--print_config")
    assert "size: 9" in capsys.readouterr().out


def test_a_chosen_class_takes_those_of_its_own(folder: Path) -> None:
    deep = f"{THIS}.Deep"
    path = saved(folder / "c.ckpt", {"size": 9, "width": 7, "extra": 4}, cls=deep)
    for name in (deep, "Deep"):
        model = built(f"--model={name}", f"--ckpt_path={path}", model=None).model
        assert (type(model).__name__, model.size, model.width, model.extra) == ("Deep", 9, 7, 4)
    with pytest.warns(UserWarning, match="not used"):
        model = built(f"--model={THIS}.Net", "--model.size=1", f"--ckpt_path={path}", model=None).model
    assert model.width == 3
    plain = saved(folder / "plain.ckpt", {"size": 9, "width": 7})  # of a script, or of a fixed class
    assert built(f"--model={deep}", f"--ckpt_path={plain}", model=None).model.width == 7


def test_the_class_is_named_and_not_imported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "foreign.py").write_text("open('ran', 'w')\n")
    path = saved(folder / "c.ckpt", {"size": 9}, cls="foreign.Net")
    with pytest.raises(SystemExit) as ended:
        built(f"--ckpt_path={path}", model=None)
    assert ended.value.code == 2
    assert "--model foreign.Net" in capsys.readouterr().err
    assert not (folder / "ran").exists()


def test_objects_are_not_built_from_a_file(folder: Path) -> None:
    (folder / "foreign.py").write_text("open('ran', 'w')\nimport torch\nclass Net(torch.nn.Module): ...\n")
    for encoder in ({"class_path": "foreign.Net"}, "foreign.Net", {"a": [{"class_path": "foreign.Net"}]}):
        path = saved(folder / "c.ckpt", {"encoder": encoder, "width": 7})
        with pytest.warns(UserWarning, match="encoder of the model"):
            model = built(f"--ckpt_path={path}", model=Encoded).model
        assert (model.encoder, model.width) == (None, 7)
    model = built(f"--ckpt_path={path}", "--model.encoder=torch.nn.Identity", model=Encoded).model
    assert isinstance(model.encoder, torch.nn.Identity)
    assert not (folder / "ran").exists()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(["size", "width", "shape", "rates", "encoder", "other", "_x"]),
        st.recursive(
            st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.just("foreign.Net"),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(st.sampled_from(["class_path", "init_args", "depth"]), inner, max_size=2)
            ),
            max_leaves=4,
        ),
    )
)
def test_whatever_a_file_holds_nothing_is_imported_and_what_is_taken_fits(
    folder: Path, hparams: dict[str, Any]
) -> None:
    (folder / "foreign.py").write_text("open('ran', 'w')\n")
    (folder / "ran").unlink(missing_ok=True)
    types = {"size": int, "width": int, "shape": Shape, "rates": list[float] | None, "encoder": torch.nn.Module}
    found = usable(Offered("c.ckpt", hparams, None), types, new_parser)
    assert set(found) <= set(hparams) & set(types)
    assert all(isinstance(found.get(name, 0), int) for name in ("size", "width"))
    assert "encoder" not in found
    assert not (folder / "ran").exists()
    parser = new_parser()
    for name in found:
        parser.add_argument(f"--{name}", type=types[name])
    parser.parse_object(found)


def new_parser() -> LightningArgumentParser:
    return LightningArgumentParser(exit_on_error=False)


def test_the_data_keeps_to_the_command_line(folder: Path) -> None:
    path = saved(folder / "c.ckpt", {"size": 9})
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "datamodule_hyper_parameters": {"batch_size": 8}}, path)
    assert built(f"--ckpt_path={path}", data=Data).datamodule.batch_size == 2


def test_best_and_last_are_those_of_the_newest_run(folder: Path) -> None:
    short = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"]
    kept = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=runs"]
    LightningCLI(Net, args=["fit", "--model.size=9", "--model.width=7", *short, *kept], save_config_callback=None)
    for asked in ("best", "last"):
        model = built(f"--ckpt_path={asked}", *kept).model
        assert (model.size, model.width) == (9, 7)


def test_arguments_as_a_dict(folder: Path) -> None:
    path = saved(folder / "c.ckpt", {"size": 9, "width": 7})

    class Stops(LightningCLI):
        def test(self, **_: Any) -> None: ...

    cli = Stops(Net, args={"subcommand": "test", "test": {"ckpt_path": path, "model": {"width": 4}}})
    assert (cli.model.size, cli.model.width) == (9, 4)


def test_what_is_no_checkpoint_is_told(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.ckpt"):
        built("--ckpt_path=none.ckpt", "--model.size=1")
    (folder / "broken.ckpt").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(CheckpointError, match=r"broken\.ckpt"):
        built("--ckpt_path=broken.ckpt", "--model.size=1")


def test_objects_in_a_file_are_left_to_the_run(folder: Path) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": {"size": Shape()}}, folder / "c.ckpt")
    assert offered_by(str(folder / "c.ckpt")) is None
    assert offered_by("best") is None
    torch.save({"state_dict": {}}, folder / "bare.ckpt")
    assert offered_by(str(folder / "bare.ckpt")) is None


def test_a_file_is_read_only_if_one_may_be_named(folder: Path) -> None:
    (folder / "with.yaml").write_text("test: {ckpt_path: c.ckpt}\n")
    (folder / "without.yaml").write_text("ckpt_path: null\n")
    assert mentions_checkpoint(["--ckpt_path", "c.ckpt"])
    assert mentions_checkpoint(["--config", "with.yaml", "test"])
    assert mentions_checkpoint([], ["FULMEN_TEST__CKPT_PATH"])
    assert not mentions_checkpoint(["--config=without.yaml", "--model.width=3"], ["HOME"])
