"""Text as numbers, in blocks: from a file, or made up."""

import shutil
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fulmen.trainer.core.download import download

# WikiText-2 (Merity et al., 2016, https://arxiv.org/abs/1609.07843), as the examples of PyTorch offer it.
WIKITEXT2_URL = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/train.txt"


class Dictionary:
    """Words and their numbers, in the order in which they came."""

    def __init__(self) -> None:
        self.word2idx: dict[str, int] = {}
        self.idx2word: list[str] = []

    def add_word(self, word: str) -> int:
        """The number of `word`, a new one if it is new."""
        number = self.word2idx.setdefault(word, len(self.idx2word))
        if number == len(self.idx2word):
            self.idx2word.append(word)
        return number

    def __len__(self) -> int:
        return len(self.idx2word)


def tokenize(path: Path) -> tuple[Tensor, Dictionary]:
    """The words of a text file as numbers, with "<eos>" after each line; and what the numbers mean.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"tokenize({str(path)!r}) found no file. Words are read from a text file."
            " Check the path, or use fulmen.trainer.demos.SyntheticText, which needs no file."
        )
    dictionary, numbers = Dictionary(), []
    with open(path, encoding="utf-8") as file:
        for line in file:
            numbers += [dictionary.add_word(word) for word in (*line.split(), "<eos>")]
    return torch.tensor(numbers, dtype=torch.int64), dictionary


class TextBlocks(Dataset[tuple[Tensor, Tensor]]):
    """Numbered words, cut into blocks.

    A sample is a pair of (block_size,) numbers: some words, and for each of them the next one.

    Args:
        data: (words,) numbers.
        block_size: Words of a sample.
    """

    def __init__(self, data: Tensor, block_size: int = 35) -> None:
        self.data = data
        self.block_size = block_size

    def __len__(self) -> int:
        return len(self.data) // self.block_size - 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = index * self.block_size
        end = start + self.block_size
        return self.data[start:end], self.data[start + 1 : end + 1]


class WikiText2(TextBlocks):
    """WikiText-2, two million words of Wikipedia.

    Args:
        data_dir: Where `wikitext-2.txt` lies, or is put.
        block_size: Words of a sample.
        download: Fetch it if it is not there? That needs a network.

    Raises:
        FileNotFoundError: If it is not there, and not to be fetched.
        CheckpointError: If it cannot be fetched.
    """

    def __init__(self, data_dir: Path = Path("./data"), block_size: int = 35, download: bool = True) -> None:
        self.path = Path(data_dir) / "wikitext-2.txt"
        if download:
            self.download(self.path)
        data, self.dictionary = tokenize(self.path)
        super().__init__(data, block_size)

    @property
    def vocab_size(self) -> int:
        """How many words there are."""
        return len(self.dictionary)

    @staticmethod
    def download(destination: Path) -> None:
        """Fetch the text to `destination`, unless there is a file."""
        if not destination.exists():
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(download(WIKITEXT2_URL), destination)


class SyntheticText(TextBlocks):
    """Made-up text in which every word has three likely successors; the same for the same seed, and without a network.

    Args:
        num_words: Length of the text.
        vocab_size: Different words.
        block_size: Words of a sample.
        seed: Which text.
    """

    def __init__(self, num_words: int = 20_000, vocab_size: int = 100, block_size: int = 35, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        successors = torch.randint(vocab_size, (vocab_size, 3), generator=generator).tolist()
        choices = torch.randint(3, (num_words,), generator=generator).tolist()
        words, word = [], 0
        for choice in choices:
            words.append(word)
            word = successors[word][choice]
        super().__init__(torch.tensor(words), block_size)
        self.vocab_size = vocab_size
