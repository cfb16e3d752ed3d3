"""A run that is stopped anywhere and goes on elsewhere reads what an uninterrupted run reads."""

from __future__ import annotations

import io
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from fulmen.fabric.data.resumable import ResumableLoader
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.seeding import collect_rng_state, restore_rng_state

SIZE = 11


class Samples(Dataset[Any]):
    """Number `index`, and how often samples were loaded."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.num_loaded = 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        self.num_loaded += 1
        return torch.tensor(index)


class Augmented(Samples):
    """Every generator that people use in workers."""

    def __getitem__(self, index: int) -> Any:
        import numpy

        return torch.tensor([index, torch.rand(()).item(), random.random(), numpy.random.rand()], dtype=torch.double)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return (torch.tensor([float(index), torch.rand(()).item()]) for index in range(first, SIZE, step))


class OwnBatches:
    """An own batch sampler: batches of 1, 2 and 3 in an order of its own, from a generator of its own."""

    def __init__(self) -> None:
        self.random = random.Random(5)

    def __iter__(self) -> Iterator[list[int]]:
        left = list(range(SIZE))
        self.random.shuffle(left)
        while left:
            size = self.random.randint(1, 3)
            yield left[:size]
            left = left[size:]


class GlobalShuffle:
    """Draws from the global generators: from one when it is asked, from the other when it begins."""

    def __iter__(self) -> Iterator[int]:
        order = list(range(SIZE))
        random.shuffle(order)
        return (order[place] for step in (0,) for place in torch.randperm(SIZE).tolist())

    def __len__(self) -> int:
        return SIZE


class StatefulSampler:
    """Goes on with another order each time, from a state that only its own methods know."""

    __slots__ = ("turn",)

    def __init__(self) -> None:
        self.turn = 0

    def __iter__(self) -> Iterator[int]:
        self.turn += 1
        return iter([(index * 3 + self.turn) % SIZE for index in range(SIZE)])

    def __len__(self) -> int:
        return SIZE

    def state_dict(self) -> dict[str, int]:
        return {"turn": self.turn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.turn = state["turn"]


def g() -> torch.Generator:
    return torch.Generator().manual_seed(9)


class Doubling(DataLoader[Any]):
    """Gives each batch twice: what is drawn is not what is given."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            yield batch
            yield batch


def shared_generator() -> Any:
    generator = g()
    loader: Any = DataLoader(Samples(), 2, shuffle=True, generator=generator)
    loader.for_validation = DataLoader(Samples(), 3, generator=generator)
    return loader


LOADERS: dict[str, Callable[[], Any]] = {
    "in order": lambda: DataLoader(Samples(), 3),
    "shuffle": lambda: DataLoader(Samples(), 3, shuffle=True),
    "shuffle, drop_last": lambda: DataLoader(Samples(), 3, shuffle=True, drop_last=True),
    "shuffle, generator": lambda: DataLoader(Samples(), 2, shuffle=True, generator=g()),
    "replacement, generator": lambda: DataLoader(
        Samples(), 2, sampler=RandomSampler(range(SIZE), True, 70, generator=g())
    ),
    "weighted": lambda: DataLoader(Samples(), 2, sampler=WeightedRandomSampler(range(1, SIZE + 1), 9)),
    "weighted, generator": lambda: DataLoader(
        Samples(), 2, sampler=WeightedRandomSampler(range(1, SIZE + 1), 9, generator=g())
    ),
    "not batched": lambda: DataLoader(Samples(), batch_size=None, shuffle=True),
    "own batch sampler": lambda: DataLoader(Samples(), batch_sampler=OwnBatches()),
    "own sampler, global generators": lambda: DataLoader(Samples(), 2, sampler=GlobalShuffle()),
    "own sampler, stateful": lambda: DataLoader(Samples(), 2, sampler=StatefulSampler()),
    "batch sampler of torch": lambda: DataLoader(Samples(), batch_sampler=BatchSampler(GlobalShuffle(), 4, False)),
    "distributed sampler": lambda: DataLoader(Samples(), 2, sampler=DistributedSampler(Samples(), 2, 1)),
    "one generator for two loaders": shared_generator,
    "own __iter__": lambda: Doubling(Samples(), 3, shuffle=True),
    "iterable dataset": lambda: DataLoader(Stream(), 3),
    "list": lambda: [torch.tensor(number) for number in range(5)],
}
NUM_EPOCHS = 2


class Run:
    """A loop such as a trainer's: it counts epochs and batches, draws random numbers, saves and goes on."""

    def __init__(self, loader: Any, **view: Any) -> None:
        torch.manual_seed(1)
        random.seed(1)
        self.view = ResumableLoader(loader, **view)
        self.loader = loader
        self.epoch = self.batch = 0
        self.read: list[Any] = []

    def go(self, num_batches: int | None = None, *, sets_epoch: bool = True) -> bool:
        """Read so many more batches; has it ended?"""
        while self.epoch < NUM_EPOCHS:
            if sets_epoch:
                self.view.set_epoch(self.epoch)
            if num_batches is not None and len(self.read) == num_batches:
                return False
            for batch in self.view:
                self.batch += 1
                self.read.append(batch.tolist())
                torch.rand(3)
                random.random()
                if num_batches is not None and len(self.read) == num_batches:
                    return False
            self._end_epoch()
        return True

    def _end_epoch(self) -> None:
        for batch in getattr(self.loader, "for_validation", ()):
            assert len(batch)
        self.epoch, self.batch = self.epoch + 1, 0

    def save(self) -> io.BytesIO:
        file = io.BytesIO()
        torch.save(
            {
                "view": self.view.state_dict(),
                "rng": collect_rng_state(),
                "counts": [self.epoch, self.batch],
                "read": self.read,
            },
            file,
        )
        file.seek(0)
        return file

    def resume(self, file: io.BytesIO, *, sets_position: bool = True) -> None:
        state = torch.load(file, weights_only=True)
        torch.manual_seed(77)
        random.seed(77)
        self.view.load_state_dict(state["view"])
        self.epoch, self.batch = state["counts"]
        if sets_position:
            self.view.set_epoch(self.epoch)
            self.view.skip_to(self.batch)
        else:
            ended = state["view"]["epoch"] + int(state["view"].get("is_finished", False))
            if ended > self.epoch:
                self._end_epoch()
        self.read = state["read"]
        restore_rng_state(state["rng"])


def uninterrupted(make: Callable[[], Any], **view: Any) -> list[Any]:
    run = Run(make(), **view)
    assert run.go()
    return run.read


def interrupted(make: Callable[[], Any], stops: list[int], *, by_itself: bool = False, **view: Any) -> list[Any]:
    run = Run(make(), **view)
    for stop in sorted(stops):
        if run.go(stop, sets_epoch=not by_itself):
            break
        file = run.save()
        run = Run(make(), **view)
        run.resume(file, sets_position=not by_itself)
    run.go(sets_epoch=not by_itself)
    return run.read


@pytest.mark.parametrize("kind", sorted(LOADERS))
def test_a_view_reads_and_draws_what_a_plain_loop_does(kind: str) -> None:
    outcomes = []
    for wrap in (lambda loader: loader, ResumableLoader):
        torch.manual_seed(4)
        random.seed(4)
        loader = wrap(LOADERS[kind]())
        batches = [batch.tolist() for batch in loader]
        outcomes.append((batches, torch.get_rng_state().tolist(), random.getstate()))
    assert outcomes[0] == outcomes[1]


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(LOADERS)), st.lists(st.integers(0, 30), min_size=1, max_size=3), st.booleans())
def test_stopped_anywhere_every_batch_comes_once_and_in_the_same_order(
    kind: str, stops: list[int], by_itself: bool
) -> None:
    assert interrupted(LOADERS[kind], stops, by_itself=by_itself) == uninterrupted(LOADERS[kind])


def with_workers(kind: str, num_workers: int, **arguments: Any) -> Callable[[], Any]:
    def make() -> Any:
        loader = LOADERS[kind]()
        given: dict[str, Any] = {"batch_sampler": loader.batch_sampler}
        if loader.batch_sampler is None:
            given = {"batch_size": None, "sampler": loader.sampler}
        return DataLoader(Augmented(), num_workers=num_workers, generator=loader.generator, **given, **arguments)

    return make


@pytest.mark.parametrize(
    "kind", ["shuffle", "shuffle, generator", "replacement, generator", "not batched", "own batch sampler"]
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_with_workers_augmentations_too_are_those_of_an_uninterrupted_run(kind: str) -> None:
    expected = uninterrupted(with_workers(kind, 2))
    stop = len(expected) // NUM_EPOCHS + 2 if kind == "shuffle" else 2
    assert interrupted(with_workers(kind, 2), [stop]) == expected


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_number_of_workers_changes_no_augmentation() -> None:
    one, three = (uninterrupted(with_workers("shuffle", number)) for number in (1, 3))
    assert one == three
    draws = [sample[1] for batch in one for sample in batch]
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize("stop", [2, 6, 8])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_that_are_kept_alive_change_nothing(stop: int) -> None:
    make = with_workers("shuffle, generator", 2, persistent_workers=True)
    assert interrupted(make, [stop]) == uninterrupted(make)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("distributed sampler", "has a DistributedSampler of its own"),
        ("iterable", "Read it by index"),
        ("torchdata", "keeps its own place.*Use torch.utils.data.DataLoader"),
    ],
)
def test_what_cannot_be_dealt_anew_to_another_number_of_processes_is_told(kind: str, words: str) -> None:
    if kind == "torchdata":
        stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    made: dict[str, Any] = {
        **LOADERS,
        "iterable": lambda: DataLoader(Stream(), 2),
        "torchdata": lambda: stateful(Samples(SIZE), 2),
    }
    make = made[kind]
    run = Run(make(), rank=0, world_size=2)
    run.go(2)
    file = run.save()
    run = Run(make())
    run.resume(file)
    with pytest.warns(UserWarning, match=f"written by 2 processes, and 1 go on.*{words}"):
        run.go()


def test_an_iterable_dataset_with_workers_is_replayed() -> None:
    def make() -> Any:
        return DataLoader(Stream(), 2, num_workers=2)

    assert interrupted(make, [3]) == uninterrupted(make)


@given(
    st.integers(1, 4), st.sampled_from(["in order", "shuffle", "not batched", "own batch sampler"]), st.integers(0, 4)
)
@settings(deadline=None, max_examples=60)
def test_processes_share_the_samples_and_go_on_where_they_were(world_size: int, kind: str, stop: int) -> None:
    visits: Counter[int] = Counter()
    for rank in range(world_size):
        view: Any = {"rank": rank, "world_size": world_size, "seed": 3}
        expected = uninterrupted(LOADERS[kind], **view)
        assert interrupted(LOADERS[kind], [stop], **view) == expected
        visits.update(sample for batch in expected for sample in (batch if isinstance(batch, list) else [batch]))
    assert set(visits) == set(range(SIZE))
    if kind != "own batch sampler":
        assert visits.total() - NUM_EPOCHS * SIZE < NUM_EPOCHS * world_size


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_another_number_of_processes_reads_what_is_left(before: int, after: int, stop: int) -> None:
    def make() -> Any:
        return DataLoader(Samples(48), 2, shuffle=True)

    visits: Counter[int] = Counter()
    states = []
    for rank in range(before):
        view = ResumableLoader(make(), rank=rank, world_size=before)
        for _, batch in zip(range(stop), view, strict=False):
            visits.update(batch.tolist())
        states.append(view.state_dict())
    for rank in range(after):
        view = ResumableLoader(make(), rank=rank, world_size=after)
        # Checkpoints hold the state of rank zero.
        view.load_state_dict(states[0])
        for batch in view:
            visits.update(batch.tolist())
    assert set(visits) == set(range(48))
    assert visits.total() - 48 < after


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("processes", [(1, 2, 2), (2, 3, 1), (3, 1, 1)])
def test_own_batches_of_unknown_number_stay_the_same_whoever_goes_on(processes: Any, num_workers: int) -> None:
    """They are drawn one by one from a generator of their own, which stands elsewhere in every process."""

    def make() -> Any:
        return DataLoader(range(SIZE), batch_sampler=OwnBatches(), num_workers=num_workers)  # type: ignore[arg-type]

    whole = list(OwnBatches())
    found: list[Any] = []
    states: list[Any] = []
    for num, stop in zip(processes, (1, 1, SIZE), strict=True):
        shares, saved = [], []
        for rank in range(num):
            view = ResumableLoader(make(), rank=rank, world_size=num, repeats=False)
            if states:
                view.load_state_dict(states[rank] if len(states) == num else states[0])
            shares.append([batch.tolist() for _, batch in zip(range(stop), view, strict=False)])
            saved.append(view.state_dict())
        states = saved
        found += [share[place] for place in range(len(shares[0])) for share in shares if place < len(share)]
    assert found == whole


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("generator", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 2])
def test_torchdata_that_several_processes_share_goes_on(stop: int, num_workers: int, generator: bool) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def make(rank: int, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        how = {"generator": torch.Generator().manual_seed(9)} if generator else {}
        loader = stateful(range(SIZE), batch_size=2, shuffle=True, num_workers=num_workers, **how)
        return ResumableLoader(loader, rank=rank, world_size=2, seed=3)

    visits: Counter[int] = Counter()
    for rank in range(2):
        loader = make(rank)
        whole = [[batch.tolist() for batch in loader] for _ in range(2)]
        first = make(rank)
        done = [batch.tolist() for _, batch in zip(range(stop), first, strict=False)]
        second = make(rank, seed=77)
        second.load_state_dict(first.state_dict())
        assert done + [batch.tolist() for batch in second] == whole[0]
        assert [batch.tolist() for batch in second] == whole[1]
        visits.update(sample for batch in whole[0] for sample in batch)
    assert set(visits) == set(range(SIZE))
    assert visits.total() - SIZE <= 2


def test_going_on_loads_no_sample_twice() -> None:
    dataset = Samples(1000)
    view = ResumableLoader(DataLoader(dataset, 10, shuffle=True))
    view.skip_to(98)
    assert [len(batch) for batch in view] == [10, 10]
    assert dataset.num_loaded == 20


def test_who_looks_one_batch_ahead_goes_back_one() -> None:
    for kind in ("shuffle", "iterable dataset"):
        torch.manual_seed(2)
        whole = [batch.tolist() for batch in ResumableLoader(LOADERS[kind]())]
        torch.manual_seed(2)
        view = ResumableLoader(LOADERS[kind]())
        batches = iter(view)
        assert [next(batches).tolist(), next(batches).tolist()] == whole[:2]
        state = view.state_dict()
        other = ResumableLoader(LOADERS[kind]())
        other.load_state_dict(state)
        other.skip_to(1)
        assert [batch.tolist() for batch in other] == whole[1:]


def test_a_dataset_that_knows_where_it_is_is_not_replayed() -> None:
    class Cursor(IterableDataset[Any]):
        def __init__(self) -> None:
            self.next = 0
            self.num_read = 0

        def __iter__(self) -> Iterator[int]:
            while self.next < SIZE:
                self.num_read += 1
                self.next += 1
                yield self.next - 1
            self.next = 0

        def state_dict(self) -> dict[str, int]:
            return {"next": self.next}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.next = state["next"]

    def make() -> Any:
        return DataLoader(Cursor(), 2)

    expected = uninterrupted(make)
    assert interrupted(make, [3, 4, 9]) == expected

    view = ResumableLoader(make())
    for _, _ in zip(range(4), view, strict=False):
        pass
    other = ResumableLoader(make())
    other.load_state_dict(view.state_dict())
    other.skip_to(3)
    assert next(iter(other)).tolist() == [6, 7]
    assert other.dataset.num_read == 2


def test_an_epoch_that_is_left_early_is_followed_by_a_new_one() -> None:
    make = LOADERS["shuffle, generator"]
    run = ResumableLoader(make())
    orders = []
    state: dict[str, Any] = {}
    for epoch in range(3):
        run.set_epoch(epoch)
        orders.append([batch.tolist() for _, batch in zip(range(2), run, strict=False)])
        state = run.state_dict() if epoch == 1 else state
    other = ResumableLoader(make())
    other.load_state_dict(state)
    other.set_epoch(2)
    assert [batch.tolist() for _, batch in zip(range(2), other, strict=False)] == orders[2]


def test_a_rehearsal_leaves_no_trace() -> None:
    make = LOADERS["shuffle, generator"]
    expected = [batch.tolist() for batch in make()]
    view = ResumableLoader(make())
    before = view.state_dict()
    assert [batch.tolist() for batch in view] == expected
    view.load_state_dict(before)
    assert [batch.tolist() for batch in view] == expected


def test_epochs_are_counted_or_told() -> None:
    sampler: DistributedSampler[int] = DistributedSampler(range(SIZE), 1, 0)  # type: ignore[arg-type]
    view = ResumableLoader(DataLoader(range(SIZE), 2, sampler=sampler))  # type: ignore[arg-type]
    told = []
    for _ in range(3):
        list(view)
        told.append(sampler.epoch)
    view.set_epoch(7)
    list(view)
    told.append(sampler.epoch)
    # A loop that tells the sampler itself is not overruled.
    view.sampler.set_epoch(40)
    list(view)
    told.append(sampler.epoch)
    assert told == [0, 1, 2, 7, 40]


def test_the_users_loader_is_not_changed_and_answers_through_the_view() -> None:
    loader = DataLoader(Samples(), 3, shuffle=True)
    before = dict(vars(loader))
    view = ResumableLoader(loader, rank=0, world_size=2)
    assert view.loader is loader
    assert (view.batch_size, view.num_workers, view.dataset) == (3, 0, loader.dataset)
    assert len(view) == 2
    assert isinstance(view.sampler, DistributedSampler)
    list(view)
    assert dict(vars(loader)) == before
    with pytest.raises(AttributeError):
        view.nothing  # noqa: B018


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_see_the_users_dataset() -> None:
    seen = next(iter(ResumableLoader(DataLoader(Samples(), 2, num_workers=1, collate_fn=_name_of_dataset))))
    assert seen == "Samples"


def _name_of_dataset(_: Any) -> str:
    worker = get_worker_info()
    assert worker is not None
    return type(worker.dataset).__name__


def test_bad_arguments_are_answered_at_once() -> None:
    with pytest.raises(ArgumentTypeError, match="3 is no loader"):
        ResumableLoader(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="rank=2"):
        ResumableLoader([1], rank=2, world_size=2)
    with pytest.raises(ConfigurationError, match=r"skip_to\(-1\)"):
        ResumableLoader([1]).skip_to(-1)
    with pytest.raises(TypeError), warnings.catch_warnings():
        len(ResumableLoader(DataLoader(Stream())))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_indices_of_samples_are_heard_in_the_order_of_the_batches(num_workers: int) -> None:
    context = "fork" if num_workers else None
    loader = DataLoader(Samples(), batch_size=3, shuffle=True, num_workers=num_workers, multiprocessing_context=context)
    view = ResumableLoader(loader)
    heard: list[list[int]] = []
    assert view.hear_indices(heard.append)
    assert [batch.tolist() for batch in view] == heard
    view.hear_indices(None)
    before = list(heard)
    assert len(list(view)) == 4
    assert heard == before
    # After a skip, those of the batches that come.
    view.hear_indices(heard.clear() or heard.append)
    view.skip_to(2)
    assert [batch.tolist() for batch in view] == heard[-2:]
    assert len(heard) == 2


def test_indices_are_not_known_of_what_has_none() -> None:
    assert not ResumableLoader(DataLoader(Stream())).hear_indices(list)
    assert not ResumableLoader([1, 2]).hear_indices(list)
    assert not ResumableLoader(DataLoader(Samples(), num_workers=1, in_order=False)).hear_indices(list)


class TakesItsStateLate(IterableDataset[int]):
    """A generator takes what was loaded when it runs for the first time, as torchdata's own examples do."""

    def __init__(self) -> None:
        self.next = self.loaded = 0

    def __iter__(self) -> Iterator[int]:
        self.next, self.loaded = self.loaded, 0
        while self.next < SIZE:
            self.next += 1
            yield self.next - 1

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = self.loaded = state["next"]


def test_a_state_that_nobody_has_asked_a_batch_of_does_not_come_back_in_the_next_epoch() -> None:
    first = ResumableLoader(DataLoader(TakesItsStateLate(), batch_size=2))
    next(iter(first))
    second = ResumableLoader(DataLoader(TakesItsStateLate(), batch_size=2))
    second.load_state_dict(first.state_dict())
    iter(second)  # and no batch is taken
    second.set_epoch(1)
    random_numbers = collect_rng_state()
    assert next(iter(second)).tolist() == [0, 1]
    restore_rng_state(random_numbers)


def test_it_is_told_that_batches_are_read_again() -> None:
    class NeverToldBefore(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(SIZE))

    first = ResumableLoader(DataLoader(NeverToldBefore(), batch_size=2))
    next(iter(first))
    second = ResumableLoader(DataLoader(NeverToldBefore(), batch_size=2))
    second.load_state_dict(first.state_dict())
    with pytest.warns(UserWarning, match="in the middle of an epoch of a NeverToldBefore.*read again and dropped"):
        assert next(iter(second)).tolist() == [2, 3]


# Of "late" not 3: behind a last batch that is not full, torchdata does not let the dataset take its state at all.
TORCHDATA = [
    *((kind, num) for kind in ("stream", "shuffle") for num in range(5)),
    *(("late", num) for num in (0, 1, 2, 4)),
]


@pytest.mark.parametrize(("kind", "num_read"), TORCHDATA)
def test_torchdata_goes_on_in_its_epoch_and_begins_the_next_one_whole(kind: str, num_read: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    class Plain(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(SIZE))

    made = {
        "stream": lambda: stateful(Plain(), batch_size=4),
        "late": lambda: stateful(TakesItsStateLate(), batch_size=4),
        "shuffle": lambda: stateful(list(range(SIZE)), batch_size=4, shuffle=True),
    }[kind]

    def read(loader: Any, num: int | None = None) -> list[Any]:
        loader.expect_look_ahead()
        found = []
        for number, batch in enumerate(loader, 1):
            found.append(batch.tolist())
            if number == num:
                break
        return found

    def two_epochs() -> tuple[list[Any], Any]:
        torch.manual_seed(0)
        loader = ResumableLoader(made())
        return [read(loader), read(loader)], loader

    whole, _ = two_epochs()
    torch.manual_seed(0)
    first = ResumableLoader(made())
    done = read(first, num_read) if num_read else []
    state, random_numbers = first.state_dict(), collect_rng_state()
    second = ResumableLoader(made())
    second.load_state_dict(state)
    restore_rng_state(random_numbers)
    rest = [] if num_read == 4 else read(second)  # after a fourth it was read to its end
    assert done + rest == whole[0]
    assert read(second) == whole[1]


@pytest.mark.parametrize("world_size", [1, 2, 7])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_an_order_that_is_known_is_entered_at_once_however_long_it_is(world_size: int, batch_size: int | None) -> None:
    """One index after the other would take weeks."""
    size, skip = 7 * 3 * 10**14, 9 * 10**13
    view = ResumableLoader(DataLoader(Samples(size), batch_size), rank=world_size - 1, world_size=world_size)
    view.skip_to(skip)
    batches = iter(view)
    units = batch_size or 1
    first = [(skip * units + place) * world_size + world_size - 1 for place in range(2 * units)]
    assert torch.stack([next(batches), next(batches)]).flatten().tolist() == first
    place = view.state_dict()
    other = ResumableLoader(DataLoader(Samples(size), batch_size), rank=world_size - 1, world_size=world_size)
    other.load_state_dict(place)
    assert next(iter(other)).flatten().tolist()[0] == first[-1] + world_size
