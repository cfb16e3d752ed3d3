"""Nothing that a stranger wrote makes a program import or run anything, or write outside the folder of its run.

`HELD` says for each way in which that was tried where it is held; the tests below close what runs through several
packages at once.
"""

import ast
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fulmen.cli.checkpoint_arguments import offered_by
from fulmen.fabric import Fabric
from fulmen.fabric.checkpoint_io import checkpoint_damage, lazy_load
from fulmen.fabric.errors import CheckpointDamagedError, CheckpointError, MisconfigurationException
from fulmen.trainer import LightningDataModule, LightningModule, Trainer
from fulmen.trainer.callbacks import ModelCheckpoint
from fulmen.trainer.checkpoint.kept import best_in
from fulmen.trainer.core.hparams_files import load_hparams_from_tags_csv, load_hparams_from_yaml
from fulmen.trainer.loggers import CSVLogger, TensorBoardLogger
from fulmen.trainer.upgrade_checkpoint import main as upgrade

ROOT = Path(__file__).parents[2]
HERE = "tests/cross/test_loading_is_safe.py"
# What was tried: the tests that hold it.
HELD = {
    "unsafe YAML": {
        HERE: ["test_yaml_and_csv_are_data"],
        "packages/cli/tests/test_allowed.py": ["test_tags_build_nothing"],
    },
    "pickles in weights, optimizers, hyperparameters": {
        HERE: ["test_planted_code_is_refused_wherever_it_is_and_whoever_reads"],
        "packages/fabric/tests/checkpoint_io/test_torch.py": ["test_planted_code_is_never_run"],
        "packages/fabric/tests/checkpoint_io/test_lazy.py": ["test_planted_code_is_never_run"],
        "packages/trainer/tests/test_upgrade_checkpoint.py": [
            "test_a_file_with_code_or_of_another_program_stays_as_it_is"
        ],
    },
    "`_instantiator` and nested `class_path` in hyperparameters": {
        HERE: ["test_hyperparameters_are_never_import_paths"],
        "packages/cli/tests/test_checkpoint_arguments.py": [
            "test_the_class_is_named_and_not_imported",
            "test_whatever_a_file_holds_nothing_is_imported_and_what_is_taken_fits",
        ],
    },
    "class paths in a config": {
        "packages/cli/tests/test_allowed.py": [
            "test_what_does_not_fit_is_refused_before_it_is_imported",
            "test_what_runs_programs_and_touches_files_is_refused",
        ],
    },
    "`.metadata` of a sharded folder": {
        HERE: ["test_a_planted_folder_is_refused"],
        "packages/fabric/tests/checkpoint_io/test_sharded_metadata.py": [
            "test_planted_code_is_never_run",
            "test_planted_code_among_the_values_is_never_run",
            "test_no_pickle_runs_anything_or_raises_anything_unknown",
            "test_classes_cannot_be_changed_by_a_pickle",
        ],
    },
    "http": {
        "packages/trainer/tests/core/test_download.py": [
            "test_a_module_and_a_run_come_from_a_url_and_run_no_code_from_it",
            "test_a_digest_in_the_name_is_checked",
        ],
    },
    "names of metrics and loggers that leave the folder": {
        HERE: [
            "test_a_metric_names_no_path_outside_the_folder",
            "test_a_logger_names_no_path_outside_the_folder",
        ],
        "tests/cross/test_newest_that_verifies.py": ["test_a_planted_ranking_removes_nothing_outside_the_folder"],
    },
    "pipes and devices in the place of files": {
        HERE: [
            "test_a_pipe_in_the_place_of_a_checkpoint_is_not_waited_for",
            "test_a_pipe_among_the_checkpoints_is_passed_over",
        ],
        "packages/fabric/tests/checkpoint_io/test_commit.py": ["test_a_pipe_or_device_is_not_replaced"],
    },
    "links in the folder of checkpoints": {HERE: ["test_links_in_the_folder_of_checkpoints_lead_nowhere"]},
    "small files that fill the memory or the time": {
        HERE: ["test_a_small_file_fills_no_memory"],
        "packages/trainer/tests/core/test_checkpoint_form.py": [
            "test_what_has_no_end_is_refused_and_not_walked_through"
        ],
        "packages/trainer/tests/core/test_hparams_files.py": ["test_yaml_beyond_all_bounds_is_refused"],
        "packages/cli/tests/test_config_files.py": ["test_anchors_without_end_are_refused_and_not_walked_through"],
    },
    "SLURM ids": {
        "packages/fabric/tests/environments/test_slurm.py": [
            "test_the_job_may_be_put_back_into_the_queue_by_words_and_not_by_a_line_for_a_shell",
            "test_whatever_the_ids_are_only_numbers_come_out",
        ],
        HERE: ["test_no_shell_is_ever_asked"],
    },
    "a planted `hpc_ckpt`": {
        HERE: ["test_a_planted_hpc_checkpoint_is_left_alone_and_refused_when_asked_for"],
    },
    "what cannot be loaded safely": {
        HERE: ["test_what_could_not_be_loaded_safely_is_refused_when_saving"],
        "packages/fabric/tests/checkpoint_io/test_safe.py": ["test_what_would_run_code_is_refused_with_its_name"],
    },
}


@pytest.mark.parametrize("threat", HELD)
def test_the_table_names_tests_that_are_there(threat: str) -> None:
    for file, names in HELD[threat].items():
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert set(names) <= there, file


class Net(LightningModule):
    """Logs what it is told to."""

    def __init__(self, width: int = 2, extra: Any = None, logged: str = "loss") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(width, 1)
        self.logged = logged

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch).sum()
        self.log(self.logged, loss)
        return loss

    def test_step(self, batch: Tensor, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(LightningDataModule):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()


def loader() -> DataLoader[Any]:
    return DataLoader(torch.ones(2, 2), batch_size=1)  # type: ignore[arg-type]  # a tensor is a set of rows


def new_trainer(folder: Path, **flags: Any) -> Trainer:
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    quiet |= {"accelerator": "cpu", "max_epochs": 1, "enable_checkpointing": False, "default_root_dir": folder}
    return Trainer(**(quiet | flags))


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.proof,)


@pytest.fixture
def proof(tmp_path: Path) -> Iterator[Path]:
    """What is there only if something ran; in the place of a module, if it was imported."""
    path = tmp_path / "proof"
    (tmp_path / "planted_module.py").write_text(f"import os; os.mkdir({str(path)!r})\nclass Thing: pass\n")
    sys.path.insert(0, str(tmp_path))
    yield path
    sys.path.remove(str(tmp_path))
    sys.modules.pop("planted_module", None)
    assert not path.exists(), "it ran"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    trainer = new_trainer(folder)
    trainer.fit(Net(), loader())
    trainer.save_checkpoint(folder / "net.ckpt")
    return folder / "net.ckpt"


# ---- pickles

PLACES: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "weights": lambda checkpoint, planted: checkpoint["state_dict"].update({"layer.bias": planted}),
    "optimizer": lambda checkpoint, planted: checkpoint["optimizer_states"].append(planted),
    "hyperparameters": lambda checkpoint, planted: checkpoint["hyper_parameters"].update(extra=planted),
    "callbacks": lambda checkpoint, planted: checkpoint["callbacks"].update(ModelCheckpoint={"best": planted}),
    "a key of its own": lambda checkpoint, planted: checkpoint.update(own=planted),
    "a key": lambda checkpoint, planted: checkpoint.update({("a", planted): 1}),
}


def read_all_ways(path: Path) -> list[Callable[[], Any]]:
    """Everything in these packages that reads a checkpoint."""
    folder = path.parent / "out"
    return [
        lambda: new_trainer(folder).fit(Net(), loader(), ckpt_path=path),
        lambda: new_trainer(folder).test(Net(), loader(), ckpt_path=path),
        lambda: Net.load_from_checkpoint(path),
        lambda: Data.load_from_checkpoint(path),
        lambda: Fabric(accelerator="cpu").load(path),
        lambda: lazy_load(path),
    ]


@pytest.mark.parametrize("place", PLACES)
def test_planted_code_is_refused_wherever_it_is_and_whoever_reads(
    place: str, saved: Path, tmp_path: Path, proof: Path
) -> None:
    checkpoint = torch.load(saved, weights_only=True)
    PLACES[place](checkpoint, Planted(proof))
    path = tmp_path / "c" / "epoch=0-step=2.ckpt"
    path.parent.mkdir()
    torch.save(checkpoint, path)
    for read in read_all_ways(path):
        with pytest.raises(CheckpointError, match=r"mkdir|plain data"):
            read()
    with pytest.raises(CheckpointError, match="mkdir"):
        best_in(str(path.parent))
    # These look, or leave alone.
    assert checkpoint_damage(path) is None
    assert offered_by(str(path)) is None
    before = path.read_bytes()
    with pytest.raises(SystemExit):
        upgrade([str(path)])
    assert path.read_bytes() == before
    keeps = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(path.parent)]}
    with pytest.warns(UserWarning, match="passed over 1.*mkdir"):
        (trainer := new_trainer(tmp_path, **keeps)).fit(Net(), loader(), ckpt_path="auto")
    assert trainer.ckpt_path is None


def test_a_planted_folder_is_refused(tmp_path: Path, proof: Path) -> None:
    import pickle

    folder = tmp_path / "c.ckpt"
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Planted(proof)))
    (folder / "meta.pt").write_bytes(pickle.dumps(Planted(proof)))
    for read in read_all_ways(folder):
        with pytest.raises((CheckpointError, IsADirectoryError)):
            read()
    with pytest.raises(CheckpointError, match="mkdir"):
        best_in(str(tmp_path))
    assert checkpoint_damage(folder) is not None


def test_a_small_file_fills_no_memory(saved: Path, tmp_path: Path) -> None:
    """Parts that are compressed could be a thousand times as large as the file."""
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(saved) as good, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in good.namelist():
            bomb.writestr(name, good.read(name) + b"\0" * 2**20 * name.endswith("data.pkl"))
    for read in read_all_ways(path):
        with pytest.raises(CheckpointDamagedError):
            read()
    with pytest.raises(CheckpointDamagedError, match="is compressed"):
        Net.load_from_checkpoint(path)


def test_links_in_the_folder_of_checkpoints_lead_nowhere(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "kept"
    outside.mkdir()
    folder.mkdir()
    (outside / "keep.txt").write_text("precious")
    for name in (".epoch=0.ckpt.99999999-aabbccdd.tmp", ".last.ckpt.99999999-aabbccdd.tmp.old", "epoch=0-step=2.ckpt"):
        (folder / name).symlink_to(outside)
    (folder / "last.ckpt").symlink_to(outside / "keep.txt")
    keeps = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(folder, save_last=True)]}
    with pytest.warns(UserWarning, match="passed over"):
        new_trainer(tmp_path, **keeps).fit(Net(), loader(), ckpt_path="auto")
    assert os.listdir(outside) == ["keep.txt"]
    assert (outside / "keep.txt").read_text() == "precious"
    assert checkpoint_damage(folder / "last.ckpt") is None


@pytest.mark.timeout(120)  # whoever opens a pipe waits for its other end
def test_a_pipe_in_the_place_of_a_checkpoint_is_not_waited_for(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe.ckpt", tmp_path / "folder.ckpt"
    folder.mkdir()
    for path in (pipe, folder / ".metadata"):
        os.mkfifo(path)
    for read in read_all_ways(pipe):
        with pytest.raises(CheckpointError, match="could not be read: it is a pipe or a device, and no file"):
            read()
    for read in read_all_ways(folder):
        with pytest.raises(CheckpointError, match=r"could not be read|is a folder"):
            read()
    for path in (pipe, folder):
        assert "it is a pipe or a device" in (checkpoint_damage(path) or "")
        with pytest.raises((CheckpointError, OSError)):
            offered_by(str(path))


@pytest.mark.timeout(120)
def test_a_pipe_among_the_checkpoints_is_passed_over(tmp_path: Path) -> None:
    for name in ("last.ckpt", "epoch=0-step=2.ckpt"):
        os.mkfifo(tmp_path / name)
    keeps = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(tmp_path)]}
    with pytest.warns(UserWarning, match="passed over.*it is a pipe or a device"):
        (trainer := new_trainer(tmp_path, **keeps)).fit(Net(), loader(), ckpt_path="auto")
    assert (trainer.ckpt_path, trainer.global_step) == (None, 2)


@pytest.mark.parametrize("content", [[1], "text", torch.ones(2), [[[]]]])
def test_what_is_no_dict_is_no_checkpoint(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    for run in (new_trainer(tmp_path).fit, new_trainer(tmp_path).test):
        with pytest.raises(CheckpointError, match="is no checkpoint of a module: it holds a"):
            run(Net(), loader(), ckpt_path=tmp_path / "x.ckpt")  # type: ignore[operator]


# ---- hyperparameters


@pytest.mark.parametrize(
    "hparams",
    [
        {"_instantiator": "planted_module.Thing"},
        {"_instantiator": "fulmen.cli.cli.instantiate_module", "_class_path": "planted_module.Thing"},
        {"_class_path": "planted_module.Thing"},
        {"class_path": "planted_module.Thing", "init_args": {}},
        {"extra": {"class_path": "planted_module.Thing", "init_args": {}}},
        {
            "_instantiator": "x",
            "extra": [{"class_path": "planted_module.Thing", "init_args": {"a": {"class_path": "b"}}}],
        },
    ],
)
def test_hyperparameters_are_never_import_paths(hparams: Any, saved: Path, tmp_path: Path, proof: Path) -> None:
    checkpoint = torch.load(saved, weights_only=True)
    checkpoint["hyper_parameters"] |= hparams
    checkpoint["datamodule_hyper_parameters"] = hparams
    torch.save(checkpoint, tmp_path / "net.ckpt")
    for read in (
        lambda: Net.load_from_checkpoint(tmp_path / "net.ckpt"),
        lambda: Data.load_from_checkpoint(tmp_path / "net.ckpt"),
    ):
        try:
            read()
        except MisconfigurationException as error:
            assert "planted_module" in str(error) or "class path" in str(error)  # noqa: PT017 (some are only data)
    new_trainer(tmp_path).fit(Net(), loader(), ckpt_path=tmp_path / "net.ckpt")
    offered_by(str(tmp_path / "net.ckpt"))
    assert "planted_module" not in sys.modules


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir",
        "!!python/object/new:os.mkdir",
        "!!python/object:planted_module.Thing",
        "!!python/name:planted_module.Thing",
        "!!python/module:planted_module",
    ],
)
def test_yaml_and_csv_are_data(tag: str, saved: Path, tmp_path: Path, proof: Path) -> None:
    tail = "''" if tag.endswith(("Thing", "module")) else f"[{proof}]"
    text = f"extra: {tag} {tail}\n"
    (tmp_path / "hparams.yaml").write_text(text)
    (tmp_path / "hparams.csv").write_text(f"key,value\nextra,__import__('os').mkdir({str(proof)!r})\n")
    for name in ("hparams.yaml", "hparams.csv"):
        Net.load_from_checkpoint(saved, hparams_file=tmp_path / name)
    load_hparams_from_yaml(tmp_path / "hparams.yaml")
    load_hparams_from_tags_csv(tmp_path / "hparams.csv")
    assert "planted_module" not in sys.modules


# ---- nothing outside the folder


NAMES = ["../../evil", "..", "a/../../../evil", "/evil", "a\\..\\evil", "../", "a/b"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("insert", [True, False])
def test_a_metric_names_no_path_outside_the_folder(name: str, insert: bool, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "down" / "run"
    for template in (f"{{{name}:.2f}}", f"x-{{{name}:.2f}}", f"a/{{{name}}}"):
        checkpoint = ModelCheckpoint(
            folder / "c", filename=template, auto_insert_metric_name=insert, save_on_train_epoch_end=True
        )
        logger = CSVLogger(folder)
        new_trainer(folder, enable_checkpointing=True, callbacks=[checkpoint], logger=logger).fit(
            Net(logged=name), loader()
        )
        assert Path(checkpoint.best_model_path).resolve().is_relative_to(folder / "c")
        assert os.path.exists(checkpoint.best_model_path)
    everything = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert all(path.is_relative_to(folder) for path in everything)


@pytest.mark.parametrize("name", ["../../evil", "..", "a/../../evil", "/evil"])
@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
@pytest.mark.parametrize("argument", ["name", "version"])
def test_a_logger_names_no_path_outside_the_folder(argument: str, kind: Any, name: str, tmp_path: Path) -> None:
    if kind is TensorBoardLogger:
        pytest.importorskip("tensorboard")
    folder = tmp_path / "deep" / "run"
    with pytest.raises(MisconfigurationException, match="outside"):
        new_trainer(folder, logger=kind(folder, **{argument: name})).fit(Net(), loader())
    assert not list(tmp_path.rglob("*evil*"))


def test_a_logger_of_another_kind_names_no_path_outside_either(tmp_path: Path) -> None:
    class Foreign(CSVLogger):
        name = "../../evil"

    folder = tmp_path / "deep" / "run"
    with pytest.raises(MisconfigurationException, match="outside"):
        new_trainer(folder, logger=Foreign(folder), enable_checkpointing=True).fit(Net(), loader())
    assert not list(tmp_path.rglob("*.ckpt"))


# ---- jobs


def test_no_shell_is_ever_asked() -> None:
    asking = ("shell=True", "os.system(", "os.popen(", "getoutput(", "getstatusoutput(")
    for source in ROOT.glob("packages/*/src/**/*.py"):
        text = source.read_text(encoding="utf-8")
        assert not any(word in text for word in asking), source


def test_a_planted_hpc_checkpoint_is_left_alone_and_refused_when_asked_for(
    saved: Path, tmp_path: Path, proof: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / "run" / "hpc_ckpt_99.ckpt"
    planted.parent.mkdir()
    torch.save({**torch.load(saved, weights_only=True), "own": Planted(proof)}, planted)
    before = planted.read_bytes()
    with pytest.raises(CheckpointError, match="mkdir"):
        new_trainer(planted.parent).fit(Net(), loader(), ckpt_path="hpc")
    for requeued in (False, True):
        if requeued:  # as SLURM says it
            job = {"JOB_ID": "7", "JOB_NAME": "train", "NTASKS": "1", "RESTART_COUNT": "1"}
            for name, value in {**job, "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
                monkeypatch.setenv(f"SLURM_{name}", value)
        trainer = new_trainer(planted.parent)
        trainer.fit(Net(), loader())
        assert (trainer.ckpt_path, trainer.global_step) == (None, 2)
    assert planted.read_bytes() == before


# ---- saving


class Own:
    """A class that no loader knows."""


@pytest.mark.parametrize(
    ("state", "key"),
    [
        ({"own": Own()}, r"\['own'\]"),
        ({"own": {"a": [1, Own()]}}, r"\['own'\]\['a'\]\[1\]"),
        ({"own": shutil.rmtree}, r"\['own'\]"),
        ({"own": lambda: None}, r"\['own'\]"),
    ],
)
def test_what_could_not_be_loaded_safely_is_refused_when_saving(state: Any, key: str, tmp_path: Path) -> None:
    class Adds(Net):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint.update(state)

    trainer = new_trainer(tmp_path)
    trainer.fit(Adds(), loader())
    with pytest.raises(CheckpointError, match=key):
        trainer.save_checkpoint(tmp_path / "net.ckpt")
    assert not (tmp_path / "net.ckpt").exists()


def test_hyperparameters_that_are_no_data_are_left_out_by_name(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path)
    trainer.fit(Net(extra={"here": 1, "gone": Own()}), loader())
    with pytest.warns(UserWarning, match=r"'extra\.gone'.*left out of checkpoints"):
        trainer.save_checkpoint(tmp_path / "net.ckpt")
    assert torch.load(tmp_path / "net.ckpt", weights_only=True)["hyper_parameters"]["extra"] == {"here": 1}
