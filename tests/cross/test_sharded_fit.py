"""A Trainer that splits parameters over two real processes trains as one process does, saves, and goes on."""

import functools
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import SumMetric

from fulmen.fabric.checkpoint_io import AsyncCheckpointIO, checkpoint_damage, consolidate_checkpoint
from fulmen.trainer import Callback, LightningModule, Trainer
from fulmen.trainer.callbacks import ModelCheckpoint
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.strategies import FSDPStrategy, ModelParallelStrategy

TRAINED, VALIDATED, UNEVEN = 32, 10, 9
EPOCHS = 2
Split = Callable[[Any], None]


class Net(LightningModule):
    """Learns to add; splits itself if it is told how."""

    def __init__(self, split: Split | None = None, manual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 1)
        self.count = SumMetric()
        self.double()
        self.split = split
        self.automatic_optimization = not manual

    def configure_model(self) -> None:
        if self.split is not None:
            self.split(self)
            self.split = None

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def _loss(self, batch: Any) -> Tensor:
        return (self(batch[0]) - batch[1]).pow(2).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = self._loss(batch)
        self.log("loss", loss, on_epoch=True, on_step=False, sync_dist=True)
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert self.trainer.world_size == 1 or not torch.is_inference_mode_enabled()
        self.log("val", self._loss(batch), sync_dist=True)
        self.log("rows", float(len(batch[0])), reduce_fx="sum", sync_dist=True)
        self.count(len(batch[0]))
        self.log("count", self.count)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).flatten()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def data(num_samples: int, batch_size: int, seed: int) -> DataLoader[Any]:
    x = torch.randn(num_samples, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=batch_size)


def trainer(folder: Path, **flags: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": EPOCHS,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "precision": "64-true",
        "default_root_dir": folder,
    }
    return Trainer(**(defaults | flags))


def whole(net: LightningModule) -> dict[str, list[Any]]:
    """All weights, on every process."""
    state: dict[str, Any] = net.state_dict()
    return {name: getattr(value, "full_tensor", value.detach)().tolist() for name, value in state.items()}


def fully(module: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    fully_shard(module, mesh=module.device_mesh["data_parallel"])


def tensors(module: Any) -> None:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(module.body, module.device_mesh["tensor_parallel"], plan)


# What a strategy is, how the module splits itself under it, and over how many processes the data is split.
STRATEGIES: dict[str, tuple[Callable[[], Any], Split | None, int]] = {
    "fsdp, one file": (lambda: FSDPStrategy(auto_wrap_policy={nn.Linear}), None, 2),
    "fsdp, a folder": (lambda: FSDPStrategy(state_dict_type="sharded"), None, 2),
    "data parallel, by the module": (lambda: ModelParallelStrategy(2, 1), fully, 2),
    "tensor parallel, one file": (lambda: ModelParallelStrategy(1, 2, save_distributed_checkpoint=False), tensors, 1),
}
BACKGROUND = ("fsdp, a folder",)  # one file: see the tests of the trainer's checkpoints
FLAGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated and clipped": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.3},
    "clipped by value": {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"},
}


def fitted(folder: Path, flags: dict[str, Any], parts: int, ckpt_path: str | None = None, **options: Any) -> Any:
    """Trainer and module after a fit; with `parts` processes for the data, batches are that much smaller."""
    split = options.pop("split", None)
    net = Net(split, manual=options.pop("manual", False))
    run = trainer(folder, **flags, **options)
    run.fit(net, data(TRAINED, 8 // parts, 1), data(VALIDATED, 4 // parts, 2), ckpt_path=ckpt_path)
    return run, net


def metrics(run: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in run.callback_metrics.items()}


def run_case(folder: Path, case: str, name: str) -> dict[str, Any]:
    """Everything that the tests look at."""
    make, split, parts = STRATEGIES[case]
    here = folder / f"{case} {name}"
    checkpoint = ModelCheckpoint(dirpath=here, filename="{epoch}", save_top_k=-1)
    options = {"devices": 2, "split": split}
    run, net = fitted(
        here,
        FLAGS[name],
        parts,
        strategy=make(),
        callbacks=[checkpoint],
        enable_checkpointing=True,
        **options,
    )
    found: dict[str, Any] = {"weights": whole(net), "fit": metrics(run), "saved": sorted(os.listdir(here))}
    if name == "plain":
        run.validate(net, data(UNEVEN, 1, 3), verbose=False)
        found["uneven"] = metrics(run)
        found["predictions"] = len(run.predict(net, data(UNEVEN, 1, 3)))
    _, again = fitted(here, FLAGS[name], parts, ckpt_path=str(here / "epoch=0.ckpt"), strategy=make(), **options)
    found["resumed"] = whole(again)
    return found


class Hears(Callback):
    """Writes down which checkpoints are on the disk, and whether they load then."""

    def __init__(self) -> None:
        self.heard: dict[str, bool] = {}

    def on_checkpoint_saved(self, trainer: Trainer, pl_module: LightningModule, path: str) -> None:
        self.heard[os.path.basename(path)] = checkpoint_damage(path) is None


def in_background(folder: Path, case: str) -> dict[str, Any]:
    """The same fit, saved in the background."""
    here, hears = folder / f"{case} in background", Hears()
    checkpoint = ModelCheckpoint(dirpath=here, filename="{epoch}", save_top_k=-1)
    options = {"devices": 2, "enable_checkpointing": True, "callbacks": [checkpoint, hears]}
    _, net = fitted(here, {}, 2, strategy=STRATEGIES[case][0](), plugins=[AsyncCheckpointIO()], **options)
    ckpt_path = str(here / "epoch=0.ckpt")
    _, again = fitted(here, {}, 2, ckpt_path=ckpt_path, strategy=STRATEGIES[case][0](), devices=2)
    return {"weights": whole(net), "resumed": whole(again), "heard": hears.heard, "saved": sorted(os.listdir(here))}


def work(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    # As torchrun starts a process: Trainer finds out by these that it is one of two.
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "1",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    seen: dict[str, Any] = {}
    try:
        for case in STRATEGIES:
            for name in FLAGS if case == "fsdp, one file" else ["plain", "accumulated and clipped"]:
                seen[f"{case}: {name}"] = run_case(folder, case, name)
        for case in BACKGROUND:
            seen[f"{case}: background"] = in_background(folder, case)
        _, manual = fitted(folder, {}, 2, devices=2, strategy="fsdp", manual=True)
        seen["manual"] = {"weights": whole(manual)}
        # From shards to one file, by another strategy.
        there = str(folder / "fsdp, a folder plain" / "epoch=0.ckpt")
        _, other = fitted(folder, {}, 2, ckpt_path=there, devices=2, strategy=ModelParallelStrategy(2, 1), split=fully)
        seen["other strategy"] = {"weights": whole(other)}
        with pytest.raises(ConfigurationError) as caught:
            trainer(folder, devices=2, strategy="fsdp").validate(Net(), data(1, 1, 3), verbose=False)
        seen["too few"] = str(caught.value)
        plain = type("NoSplit", (Net,), {"configure_model": LightningModule.configure_model})
        with pytest.raises(ConfigurationError) as caught:
            trainer(folder, devices=2, strategy=ModelParallelStrategy(2, 1)).fit(plain(), data(8, 1, 3))
        seen["not split"] = str(caught.value)
    except BaseException:
        seen["failed"] = traceback.format_exc()
    (folder / f"{rank}.json").write_text(json.dumps(seen))
    os._exit(0)  # a process that failed must not wait for the other one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all cases."""
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict[str, Any]]:
    # Kept here, so that nobody else can take its port.
    store = torch.distributed.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    port = store.port
    torch.multiprocessing.start_processes(work, args=(port, folder), nprocs=2, start_method="fork")
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    for one in found:
        assert "failed" not in one, one["failed"]
    return found


@functools.cache
def alone(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, float], dict[str, float]]:
    """Weights and metrics of one process."""
    run, net = fitted(folder, FLAGS.get(name, {}), 1, manual=name == "manual")
    fit = metrics(run)
    run.validate(net, data(UNEVEN, 1, 3), verbose=False)
    return whole(net), fit, metrics(run)


def assert_close(ours: Any, expected: Any) -> None:
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        one, other = torch.tensor(ours[name], dtype=torch.float64), torch.tensor(value, dtype=torch.float64)
        assert torch.allclose(one, other, rtol=0, atol=1e-10), name


CASES = [(case, name) for case in STRATEGIES for name in ("plain", "accumulated and clipped")]
CASES.append(("fsdp, one file", "clipped by value"))


@pytest.mark.parametrize(("case", "name"), CASES)
def test_weights_and_metrics_are_those_of_one_process(case: str, name: str, seen: Any, tmp_path: Path) -> None:
    weights, fit, _ = alone(name, tmp_path)
    for one in seen:
        assert_close(one[f"{case}: {name}"]["weights"], weights)
        assert_close(one[f"{case}: {name}"]["fit"], fit)


@pytest.mark.parametrize(("case", "name"), CASES)
def test_a_resumed_run_is_the_one_that_never_stopped(case: str, name: str, seen: Any) -> None:
    for one in seen:
        found = one[f"{case}: {name}"]
        assert found["resumed"] == found["weights"]
        assert found["saved"] == ["epoch=0.ckpt", "epoch=1.ckpt"]


def plain(value: Any) -> Any:
    """Tensors as lists, which compare."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value.tolist() if isinstance(value, Tensor) else value


def content(path: Path) -> dict[str, Any]:
    """Of a checkpoint, in one file or in a folder."""
    if path.is_dir():
        consolidate_checkpoint(path, path.with_suffix(".whole"))
        path = path.with_suffix(".whole")
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found


@pytest.mark.parametrize("case", BACKGROUND)
def test_what_is_saved_in_the_background_is_what_is_saved_at_once(case: str, seen: Any, folder: Path) -> None:
    for rank, one in enumerate(seen):
        found, expected = one[f"{case}: background"], one[f"{case}: plain"]
        for key in ("weights", "resumed", "saved"):
            assert found[key] == expected[key]
        # The first process speaks for all, and the run does not end before it has.
        assert found["heard"] == ({} if rank else {"epoch=0.ckpt": True, "epoch=1.ckpt": True})
    for epoch in range(EPOCHS):
        paths = [folder / f"{case} {how}" / f"epoch={epoch}.ckpt" for how in ("plain", "in background")]
        at_once, later = map(content, paths)
        assert at_once.keys() == later.keys()
        tensors = [key for key in at_once if key.startswith(("state_dict", "model", "optimizer"))]
        assert len(tensors) == 2
        for key in tensors:
            assert plain(at_once[key]) == plain(later[key])


@pytest.mark.parametrize("case", STRATEGIES)
def test_every_sample_counts_once_also_where_processes_have_different_numbers(
    case: str, seen: Any, tmp_path: Path
) -> None:
    _, _, uneven = alone("plain", tmp_path)
    for one in seen:
        found = one[f"{case}: plain"]
        assert_close(found["uneven"], uneven)
        assert found["uneven"]["rows"] == UNEVEN
    predictions = [one[f"{case}: plain"]["predictions"] for one in seen]
    assert predictions == ([5, 4] if STRATEGIES[case][2] == 2 else [UNEVEN, UNEVEN])


def test_the_module_may_step_by_itself(seen: Any, tmp_path: Path) -> None:
    weights, _, _ = alone("manual", tmp_path)
    for one in seen:
        assert_close(one["manual"]["weights"], weights)


def test_what_one_strategy_saved_another_one_goes_on_from(seen: Any, tmp_path: Path) -> None:
    weights, _, _ = alone("plain", tmp_path)
    for one in seen:
        assert_close(one["other strategy"]["weights"], weights)


def test_what_cannot_work_is_told(seen: Any) -> None:
    assert all("one without any" in one["too few"] for one in seen)
    assert all("has no configure_model()" in one["not split"] for one in seen)
