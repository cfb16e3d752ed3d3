"""Questions to a loader before it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader, IterableDataset

from fulmen.fabric.data.length import has_iterable_dataset, has_len, sized_len, suggested_max_num_workers


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


class Undecided:
    def __len__(self) -> int:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("loader", "length"),
    [(DataLoader(range(5), batch_size=2), 3), (DataLoader(Stream()), None), (iter([1]), None), (Undecided(), None)],  # type: ignore[arg-type]
)
def test_a_length_is_known_or_none(loader: Any, length: int | None) -> None:
    assert sized_len(loader) == length
    assert has_len(loader) is (length is not None)


def test_an_empty_loader_is_pointed_out() -> None:
    with pytest.warns(UserWarning, match="length 0"):
        assert has_len(DataLoader([1], batch_size=2, drop_last=True))  # type: ignore[arg-type]


def test_a_dataset_that_is_a_stream_is_recognised() -> None:
    assert has_iterable_dataset(DataLoader(Stream()))
    assert not has_iterable_dataset(DataLoader([1]))  # type: ignore[arg-type]
    assert not has_iterable_dataset([1])


def test_processes_share_the_cores() -> None:
    assert suggested_max_num_workers(1) >= suggested_max_num_workers(4) >= 1
    with pytest.raises(ValueError, match="less than one process"):
        suggested_max_num_workers(0)
