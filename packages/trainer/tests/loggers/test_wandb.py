"""W&B for real, offline: what its client has written is read back."""

import json
import pickle
import struct

import pytest
import torch

wandb = pytest.importorskip("wandb")

from fulmen.trainer.demos import BoringModel  # noqa: E402
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError  # noqa: E402
from fulmen.trainer.loggers import WandbLogger  # noqa: E402


def records(path):
    """The records of a .wandb file: the framing of LevelDB's logs, in blocks of 32 KiB, around protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, part = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        position += 7
        part += data[position : position + length]
        position += length
        if kind in (1, 4):  # a whole one, or the last part of one
            yield Record.FromString(part)
            part = b""


def items_of(items):
    found = {}
    for item in items:
        found["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return found


class Model(BoringModel):
    def __init__(self, lr=0.1, widths=(3, 4), model=None):
        super().__init__()
        self.save_hyperparameters()

    def training_step(self, batch, batch_idx):
        self.log("a", float(batch_idx))
        if batch_idx == 2 and self.hparams.model == "fails":
            raise RuntimeError("of the test")
        return super().training_step(batch, batch_idx)


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Two runs: one that succeeds and logs media too, one that fails. What was written of each."""
    from fulmen.trainer import Trainer

    folder, patch = tmp_path_factory.mktemp("wandb"), pytest.MonkeyPatch()
    patch.setenv("WANDB_SILENT", "true")
    patch.setenv("WANDB__DISABLE_STATS", "true")
    patch.setenv("WANDB_ERROR_REPORTING", "false")
    runs = {}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "limit_val_batches": 0}
    quiet |= {"log_every_n_steps": 1, "limit_train_batches": 5, "max_epochs": 1, "default_root_dir": folder}
    for name in ("good", "fails"):
        logger = WandbLogger(name, save_dir=folder, offline=True, project="p", prefix="pre", tags=["x"])
        trainer = Trainer(logger=logger, **quiet)
        try:
            trainer.fit(Model(model={"depth": 2} if name == "good" else name))
        except RuntimeError:
            runs[name] = (logger.version, logger._experiment)
            continue
        experiment = logger.experiment
        assert pickle.loads(pickle.dumps(logger)).version == logger.version  # goes on with the same run elsewhere
        logger.log_image("image", [torch.rand(3, 4, 4)], step=7, caption=["c"])
        logger.log_text("text", ["one"], [["word"]])
        logger.log_table("table", ["x", "y"], [[1, 2]], step=8)
        runs[name] = (logger.version, experiment)
        checkpoint = trainer.checkpoint_callback.best_model_path
        assert checkpoint.startswith(str(folder / "p" / logger.version / "checkpoints"))
        experiment.finish()
    wandb.teardown()  # until then, the file may be empty
    patch.undo()
    return {
        name: (list(records(next(folder.glob(f"wandb/*{key}/run-{key}.wandb")))), run)
        for name, (key, run) in runs.items()
    }


def history(written):
    return [items_of(record.history.item) for record in written if record.HasField("history")]


def test_numbers_have_their_prefix_and_their_step(offline):
    rows = history(offline["good"][0])
    assert [(row["trainer/global_step"], row["pre-a"]) for row in rows if "pre-a" in row] == [(n, n) for n in range(5)]
    assert all(row["pre-epoch"] == 0 for row in rows if "pre-a" in row)
    metrics = [record.metric for record in offline["good"][0] if record.HasField("metric")]
    assert [(metric.name, metric.glob_name, metric.step_metric) for metric in metrics][:2] == [
        ("trainer/global_step", "", ""),
        ("", "*", "trainer/global_step"),
    ]


def test_hyperparameters_stay_nested(offline):
    configs = [items_of(record.config.update) for record in offline["good"][0] if record.HasField("config")]
    assert {"lr": 0.1, "widths": [3, 4], "model": {"depth": 2}} in configs


def test_media_are_logged(offline):
    rows = history(offline["good"][0])
    image = next(row for row in rows if "pre-image/captions" in row)
    assert (image["trainer/global_step"], image["pre-image/captions"]) == (7, ["c"])
    assert {key for row in rows for key in row if key.endswith("/_type")} >= {"pre-table/_type", "pre-text/_type"}


def test_what_was_asked_of_the_run(offline):
    run = next(record.run for record in offline["good"][0] if record.HasField("run"))
    assert (run.project, run.display_name, list(run.tags)) == ("p", "good", ["x"])


def test_the_true_status(offline):
    codes = {name: [r.exit.exit_code for r in written if r.HasField("exit")] for name, (written, _) in offline.items()}
    assert codes == {"good": [0], "fails": [1]}
    assert offline["fails"][1] is None
    assert [row["pre-a"] for row in history(offline["fails"][0]) if "pre-a" in row] == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offline": True, "log_model": True}, "contradict each other"),
        ({"log_model": "some"}, "log_model='some'"),
        ({"add_file_policy": "x"}, "add_file_policy='x'"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ConfigurationError, match=message):
        WandbLogger(**options)


def test_media_come_in_lists():
    logger = WandbLogger(offline=True)
    with pytest.raises(ArgumentTypeError, match=r"images=Tensor.*Pass images=\[...\]"):
        logger.log_image("image", torch.rand(3, 4, 4))
    with pytest.raises(ConfigurationError, match=r"caption=.* has 1 values, for 2 images"):
        logger.log_image("image", [torch.rand(3, 4, 4)] * 2, caption=["c"])


def test_where_and_what(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    logger = WandbLogger(version="v", dir=tmp_path, save_dir="not here")
    assert (logger.name, logger.version, logger.save_dir) == ("lightning_logs", "v", str(tmp_path))
    monkeypatch.setenv("WANDB_PROJECT", "from the environment")
    assert WandbLogger().name == "from the environment"


class Uploads:
    """W&B's run as far as artifacts go; they are only made on its server."""

    id = "key"

    def __init__(self):
        self.logged = []

    def log_artifact(self, artifact, aliases):
        self.logged.append((artifact.name, artifact.type, list(artifact.manifest.entries), aliases, artifact.metadata))

    def log(self, *_): ...


def test_checkpoints_are_artifacts(quick, tmp_path):
    run = Uploads()
    logger = WandbLogger(save_dir=tmp_path, experiment=run, log_model=True)
    quick(logger=logger, enable_checkpointing=True, limit_train_batches=2, limit_val_batches=0).fit(BoringModel())
    [(name, kind, files, aliases, metadata)] = run.logged
    assert (name, kind, files, aliases) == ("model-key", "model", ["model.ckpt"], ["latest", "best"])
    assert metadata["ModelCheckpoint"]["save_top_k"] == 1
