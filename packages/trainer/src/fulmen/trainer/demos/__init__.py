"""Small models and data: to try something out, and for bug reports."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.trainer.demos.boring import BoringDataModule as BoringDataModule
    from fulmen.trainer.demos.boring import BoringDataModuleNoLen as BoringDataModuleNoLen
    from fulmen.trainer.demos.boring import BoringModel as BoringModel
    from fulmen.trainer.demos.boring import DemoModel as DemoModel
    from fulmen.trainer.demos.boring import IterableBoringDataModule as IterableBoringDataModule
    from fulmen.trainer.demos.boring import ManualOptimBoringModel as ManualOptimBoringModel
    from fulmen.trainer.demos.boring import Net as Net
    from fulmen.trainer.demos.boring import RandomDataset as RandomDataset
    from fulmen.trainer.demos.boring import RandomDictDataset as RandomDictDataset
    from fulmen.trainer.demos.boring import RandomIterableDataset as RandomIterableDataset
    from fulmen.trainer.demos.boring import RandomIterableDatasetWithLen as RandomIterableDatasetWithLen
    from fulmen.trainer.demos.digits import MNIST as MNIST
    from fulmen.trainer.demos.digits import MNISTDataModule as MNISTDataModule
    from fulmen.trainer.demos.lstm import LightningLSTM as LightningLSTM
    from fulmen.trainer.demos.lstm import SequenceSampler as SequenceSampler
    from fulmen.trainer.demos.lstm import SimpleLSTM as SimpleLSTM
    from fulmen.trainer.demos.text import Dictionary as Dictionary
    from fulmen.trainer.demos.text import SyntheticText as SyntheticText
    from fulmen.trainer.demos.text import WikiText2 as WikiText2
    from fulmen.trainer.demos.text import tokenize as tokenize
    from fulmen.trainer.demos.transformer import LightningTransformer as LightningTransformer
    from fulmen.trainer.demos.transformer import PositionalEncoding as PositionalEncoding
    from fulmen.trainer.demos.transformer import Transformer as Transformer

_BORING, _DIGITS = "fulmen.trainer.demos.boring", "fulmen.trainer.demos.digits"
_LSTM, _TEXT, _TRANSFORMER = (
    "fulmen.trainer.demos.lstm",
    "fulmen.trainer.demos.text",
    "fulmen.trainer.demos.transformer",
)

_WHERE = {
    # nearly nothing
    "BoringDataModule": _BORING,
    "BoringDataModuleNoLen": _BORING,
    "BoringModel": _BORING,
    "DemoModel": _BORING,
    "IterableBoringDataModule": _BORING,
    "ManualOptimBoringModel": _BORING,
    "Net": _BORING,
    "RandomDataset": _BORING,
    "RandomDictDataset": _BORING,
    "RandomIterableDataset": _BORING,
    "RandomIterableDatasetWithLen": _BORING,
    # pictures of digits
    "MNIST": _DIGITS,
    "MNISTDataModule": _DIGITS,
    # text
    "Dictionary": _TEXT,
    "SyntheticText": _TEXT,
    "WikiText2": _TEXT,
    "tokenize": _TEXT,
    "LightningLSTM": _LSTM,
    "SequenceSampler": _LSTM,
    "SimpleLSTM": _LSTM,
    "LightningTransformer": _TRANSFORMER,
    "PositionalEncoding": _TRANSFORMER,
    "Transformer": _TRANSFORMER,
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_face(__name__, _WHERE)
