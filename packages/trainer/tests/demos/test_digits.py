import gzip
import struct

import pytest
import torch

from fulmen.trainer.demos import MNIST, MNISTDataModule, digits
from fulmen.trainer.errors import CheckpointError


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures to learn from and four to test with, one file of four packed."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for train, count in ((True, 12), (False, 4)):
        pictures, labels = digits._FILES[train]
        content = bytes(index % 256 for index in range(count * 28 * 28))
        (raw / pictures).write_bytes(b"\x00\x00\x08\x03" + struct.pack(">3I", count, 28, 28) + content)
        labelled = b"\x00\x00\x08\x01" + struct.pack(">I", count) + bytes(index % 10 for index in range(count))
        (raw / f"{labels}.gz").write_bytes(gzip.compress(labelled))
    return tmp_path


def test_pictures_and_digits_come_from_the_files(folder):
    data = MNIST(folder, target_transform=str)
    assert len(data) == 12
    picture, digit = data[11]
    assert (picture.shape, picture.dtype, digit) == (torch.Size([28, 28]), torch.uint8, "1")
    assert picture.flatten().tolist() == [index % 256 for index in range(11 * 784, 12 * 784)]
    assert len(MNIST(folder, train=False)) == 4


@pytest.mark.parametrize("normalize", [True, False])
def test_loaders_split_what_is_learned_from(normalize, folder):
    data = MNISTDataModule(str(folder), val_split=3, num_workers=0, normalize=normalize, batch_size=4)
    data.prepare_data()
    data.setup("fit")
    seen = [x for loader in (data.train_dataloader(), data.val_dataloader()) for x, _ in loader]
    assert [len(batch) for batch in seen] == [4, 4, 3]
    everything = torch.cat(seen)
    assert everything.shape[1:] == (1, 28, 28)
    assert (everything.min().item(), everything.max().item()) == (-1.0 if normalize else 0.0, 1.0)
    assert sum(len(x) for x, _ in data.test_dataloader()) == 4
    assert data.num_classes == 10


def test_what_is_missing_or_damaged_is_told(folder, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"train-images.*download=True"):
        MNIST(tmp_path / "other")
    monkeypatch.setattr(digits, "MNIST_URL", "http://127.0.0.1:1/")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(CheckpointError, match="could not be fetched"):
        MNIST(tmp_path / "other", download=True)
    pictures = folder / "MNIST" / "raw" / digits._FILES[True][0]
    for damaged in (pictures.read_bytes()[:-1], b"", b"\x00\x00\x09\x01abcd"):
        pictures.write_bytes(damaged)
        with pytest.raises(ValueError, match="no whole IDX file"):
            MNIST(folder)
