"""A run saved by some processes goes on with more or fewer: the rest of the epoch sees each remaining sample once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fulmen.fabric import Fabric
from fulmen.trainer import Callback, LightningModule, Trainer, seed_everything
from tests.support.two_processes import in_two_processes

SIZE, BATCH, EPOCHS = 48, 2, 2


class Numbers(Dataset[Tensor]):
    """0, 1, 2, ...; counts what it loads."""

    def __init__(self) -> None:
        self.num_loaded = 0

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Tensor:
        self.num_loaded += 1
        return torch.tensor([float(index)])


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[Any] = []
        self.means: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append([self.current_epoch, batch_idx, batch.flatten().tolist()])
        self.log("mean", batch.mean(), on_epoch=True, sync_dist=True)
        return self.layer(batch).mean()

    def on_train_epoch_end(self) -> None:
        self.means.append(float(self.trainer.callback_metrics["mean"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


class SaveAt(Callback):
    def __init__(self, path: Path, batch: int) -> None:
        self.path, self.batch = path, batch

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 0 and batch_idx + 1 == self.batch:
            trainer.save_checkpoint(self.path)


def train(folder: Path, devices: int, batch: int | None, ckpt_path: Path | None) -> dict[str, Any]:
    seed_everything(1, verbose=False)
    net, data = Net(), Numbers()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=EPOCHS,
        callbacks=[] if batch is None else [SaveAt(folder / "saved.ckpt", batch)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(net, DataLoader(data, batch_size=BATCH, shuffle=True), ckpt_path=ckpt_path)
    # `ckpt_path` asks for the last epoch only to find its rank's share: nothing that was skipped is loaded.
    return {"seen": net.seen, "step": trainer.global_step, "means": net.means, "loaded": data.num_loaded}


def fabric_loader(devices: int, state: Any = None) -> Any:
    seed_everything(1, verbose=False)
    fabric: Any = Fabric(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto")
    fabric.launch()
    loader = fabric.setup_dataloaders(DataLoader(Numbers(), batch_size=BATCH, shuffle=True))
    if state is not None:
        loader.load_state_dict(state)
    return loader


def read(loader: Any, num_batches: int | None = None) -> list[float]:
    seen: list[float] = []
    for number, batch in enumerate(loader, 1):
        seen += batch.flatten().tolist()
        if number == num_batches:
            break
    return seen


def one_of_two(rank: int, folder: Path) -> None:
    (folder / "two").mkdir(exist_ok=True)
    found: dict[str, Any] = {"grown": train(folder, 2, None, folder / "one" / "saved.ckpt")}
    found["whole"] = train(folder / "two", 2, 5, None)
    loader = fabric_loader(2, torch.load(folder / "fabric.pt", weights_only=True))
    found["fabric length"] = len(loader)
    found["fabric"] = read(loader)
    loader = fabric_loader(2)
    found["fabric first"] = read(loader, 5)
    torch.save(loader.state_dict(), folder / f"fabric of two, {rank}.pt")
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("elastic")
    (folder / "one").mkdir()
    answers: dict[str, Any] = {"one": train(folder / "one", 1, 10, None)}
    loader = fabric_loader(1)
    answers["fabric of one"] = read(loader, 10)
    torch.save(loader.state_dict(), folder / "fabric.pt")
    in_two_processes(one_of_two, folder)
    answers["two"] = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    answers["shrunk"] = train(folder, 1, None, folder / "two" / "saved.ckpt")
    loader = fabric_loader(1, torch.load(folder / "fabric of two, 0.pt", weights_only=True))
    answers["fabric shrunk"] = read(loader)
    return answers


def samples(seen: list[Any], epoch: int, first: int = 0, last: int = 10**9) -> list[float]:
    return [number for at, index, batch in seen if at == epoch and first <= index < last for number in batch]


def test_one_process_takes_over_from_two(found: dict[str, Any]) -> None:
    done = [number for one in found["two"] for number in samples(one["whole"]["seen"], 0, last=5)]
    rest = found["shrunk"]
    assert sorted(done + samples(rest["seen"], 0)) == list(map(float, range(SIZE)))
    # Five batches of two processes are done; the 28 samples left are 14 batches of one; and then an epoch of one.
    assert [index for epoch, index, _ in rest["seen"] if epoch == 0] == list(range(5, 19))
    assert sorted(samples(rest["seen"], 1)) == list(map(float, range(SIZE)))
    assert rest["step"] == 19 + SIZE // BATCH
    assert rest["loaded"] == 28 + SIZE
    # The mean of the epoch is that of all its samples.
    assert rest["means"] == pytest.approx([(SIZE - 1) / 2] * 2)


def test_two_processes_take_over_from_one(found: dict[str, Any]) -> None:
    done = samples(found["one"]["seen"], 0, last=10)
    rest = [one["grown"] for one in found["two"]]
    assert sorted(done + samples(rest[0]["seen"], 0) + samples(rest[1]["seen"], 0)) == list(map(float, range(SIZE)))
    for one in rest:
        assert [index for epoch, index, _ in one["seen"] if epoch == 0] == list(range(10, 17))
        assert one["step"] == 17 + SIZE // (2 * BATCH)
        assert one["loaded"] == 14 + SIZE // 2
        assert one["means"] == pytest.approx([(SIZE - 1) / 2] * 2)


def test_the_state_of_a_loader_of_fabric_goes_on_too(found: dict[str, Any]) -> None:
    everything = list(map(float, range(SIZE)))
    two = found["two"]
    assert sorted(found["fabric of one"] + two[0]["fabric"] + two[1]["fabric"]) == everything
    assert two[0]["fabric length"] == 10 + 7
    assert sorted(two[0]["fabric first"] + two[1]["fabric first"] + found["fabric shrunk"]) == everything
