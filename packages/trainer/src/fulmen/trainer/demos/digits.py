"""MNIST: 70,000 pictures of handwritten digits (LeCun et al., 1998), read from its own files without torchvision."""

import gzip
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, random_split

from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.download import download as fetch

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FILES = {
    True: ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    False: ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class MNIST(Dataset[tuple[Any, Any]]):
    """Pictures and their digits.

    Args:
        root: The files lie in `root/MNIST/raw`, plain or as `.gz`; where torchvision puts them too.
        train: The 60,000 pictures to learn from, or the 10,000 to test with?
        transform: Called with a picture, a (28, 28) tensor of bytes.
        target_transform: Called with a digit.
        download: Fetch the files that are missing? That needs a network.

    Raises:
        FileNotFoundError: If files are missing, and not to be fetched.
        CheckpointError: If they cannot be fetched.
    """

    def __init__(
        self,
        root: str | Path,
        train: bool = True,
        transform: Callable[[Tensor], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
        download: bool = False,
    ) -> None:
        folder = Path(root) / "MNIST" / "raw"
        self.data, self.targets = (_read(folder, name, download) for name in _FILES[train])
        self.transform = transform
        self.target_transform = target_transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        picture, digit = self.data[index], int(self.targets[index])
        return (
            self.transform(picture) if self.transform is not None else picture,
            self.target_transform(digit) if self.target_transform is not None else digit,
        )


class AsFloat:
    """A picture of bytes (28, 28) as numbers (1, 28, 28) from 0 to 1; or about 0 with about unit variance."""

    def __init__(self, normalize: bool) -> None:
        self.normalize = normalize

    def __call__(self, picture: Tensor) -> Tensor:
        """`picture` as numbers."""
        numbers = picture.unsqueeze(0) / 255
        return (numbers - 0.5) / 0.5 if self.normalize else numbers


class MNISTDataModule(LightningDataModule):
    """Loaders of MNIST; without a network it needs the files in place, see `MNIST`.

    Args:
        data_dir: See `MNIST`.
        val_split: Pictures that are taken from training for validation.
        num_workers: Processes that read.
        normalize: From -1 to 1 rather than from 0 to 1?
        seed: Which pictures are taken for validation.
        batch_size: Pictures of a batch.
    """

    name = "mnist"

    def __init__(
        self,
        data_dir: str = "./data",
        val_split: int = 5000,
        num_workers: int = 16,
        normalize: bool = False,
        seed: int = 42,
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        self.data_dir = data_dir
        self.val_split = val_split
        self.num_workers = num_workers
        self.normalize = normalize
        self.seed = seed
        self.batch_size = batch_size
        self.dataset_train: Dataset[Any] | None = None
        self.dataset_val: Dataset[Any] | None = None

    @property
    def num_classes(self) -> int:
        """Ten digits."""
        return 10

    @property
    def default_transforms(self) -> Callable[[Tensor], Tensor]:
        """From bytes to numbers."""
        return AsFloat(self.normalize)

    def prepare_data(self) -> None:
        """Fetches the files that are missing."""
        for train in (True, False):
            MNIST(self.data_dir, train=train, download=True)

    def setup(self, stage: str) -> None:
        """Splits what is learned from."""
        whole = MNIST(self.data_dir, train=True, transform=self.default_transforms)
        sizes = [len(whole) - self.val_split, self.val_split]
        generator = torch.Generator().manual_seed(self.seed)
        self.dataset_train, self.dataset_val = random_split(whole, sizes, generator=generator)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, whole batches."""
        return self._loader(self.dataset_train, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """What was taken from training."""
        return self._loader(self.dataset_val)

    def test_dataloader(self) -> DataLoader[Any]:
        """The pictures to test with."""
        return self._loader(MNIST(self.data_dir, train=False, transform=self.default_transforms))

    def _loader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            **options,
        )


def _read(folder: Path, name: str, download: bool) -> Tensor:
    """The tensor of bytes in an IDX file: http://yann.lecun.com/exdb/mnist/."""
    plain, packed = folder / name, folder / f"{name}.gz"
    if not plain.exists() and not packed.exists():
        if not download:
            raise FileNotFoundError(
                f"MNIST(root={str(folder.parents[1])!r}) found neither {name} nor {name}.gz in {str(folder)!r}."
                " The data set is four such files. Put them there, or pass download=True on a machine with a network."
            )
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(fetch(f"{MNIST_URL}{name}.gz"), packed)
    content = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
    # Two zeros, 8 for bytes, the number of axes; then the length of each axis.
    num_axes = content[3] if len(content) > 3 and content[:3] == b"\x00\x00\x08" else 0
    head = 4 + 4 * num_axes
    shape = struct.unpack(f">{num_axes}I", content[4:head]) if num_axes and len(content) >= head else ()
    if not shape or len(content) != head + torch.Size(shape).numel():
        raise ConfigurationError(
            f"{str(plain if plain.exists() else packed)!r} is no whole IDX file of bytes. It was cut short, or is"
            " something else. Remove it, and fetch it again."
        )
    return torch.frombuffer(bytearray(content[head:]), dtype=torch.uint8).reshape(shape)
