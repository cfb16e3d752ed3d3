"""Seed everything; save, restore and isolate the state of the random number generators."""

from __future__ import annotations

import hashlib
import importlib
import os
import random
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fulmen.fabric.arguments import check_flag
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.rank_zero import rank_prefixed_message, rank_zero_info, rank_zero_only, rank_zero_warn

min_seed_value = 0
# What numpy's legacy generator takes.
max_seed_value = 2**32 - 1

_SEED = "FULMEN_GLOBAL_SEED"
_SEED_WORKERS = "FULMEN_SEED_WORKERS"
# Read, never written: jobs moved from PyTorch Lightning set it.
_FOREIGN_SEED = "PL_GLOBAL_SEED"


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed Python, numpy (if installed) and torch on all devices; processes started from here find the seed too.

    Args:
        seed: From 0 to 2**32 - 1. None takes it from the environment, FULMEN_GLOBAL_SEED before PL_GLOBAL_SEED, or 0.
        workers: Also seed each worker of a DataLoader, differently on each process.
        verbose: Say the seed.

    Returns:
        The seed.

    Raises:
        ArgumentTypeError: If the seed is no integer.
        ConfigurationError: If it is out of range, or the environment variable holds no number.
    """
    check_flag("seed_everything", "workers", workers)
    check_flag("seed_everything", "verbose", verbose)
    chosen = _seed_of_environment() if seed is None else _as_integer(seed)
    if not min_seed_value <= chosen <= max_seed_value:
        raise ConfigurationError(
            f"seed_everything({chosen}) is out of range. Seeds go from {min_seed_value} to {max_seed_value}, the range"
            f" of numpy's generator. Pass one of these, for example {chosen % (max_seed_value + 1)}."
        )
    if verbose:
        rank_zero_info(rank_prefixed_message(f"Seed set to {chosen}", _known_rank()))
    os.environ[_SEED] = str(chosen)
    os.environ[_SEED_WORKERS] = str(int(bool(workers)))
    _seed_generators(chosen)
    return chosen


def reset_seed() -> None:
    """Seed again with the seed of the last `seed_everything`; nothing happens if there was none."""
    seed = os.environ.get(_SEED)
    if seed is not None:
        seed_everything(int(seed), workers=seeds_workers(), verbose=False)


def seeds_workers() -> bool:
    """Did the last `seed_everything` ask for seeded workers?"""
    return os.environ.get(_SEED_WORKERS, "0") not in ("", "0")


def run_seed() -> int:
    """The seed of the last `seed_everything`, here or in the process that started this one; 0 if there was none."""
    text = os.environ.get(_SEED, "0")
    return int(text) if text.isdecimal() else 0


def _known_rank() -> int | None:
    # Alone, a prefix would be noise.
    return rank_zero_only.rank if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1") else None


def _seed_of_environment() -> int:
    for variable in (_SEED, _FOREIGN_SEED):
        text = os.environ.get(variable)
        if text is not None:
            try:
                return int(text)
            except ValueError:
                raise ConfigurationError(
                    f"{variable}={text!r} is no seed. seed_everything() without a number takes the seed from this"
                    " environment variable, which must hold an integer. Set it to one, or call seed_everything(42)."
                ) from None
    rank_zero_warn("seed_everything() was given no seed, and none is in the environment. The seed is 0.")
    return 0


def _as_integer(seed: Any) -> int:
    try:
        if isinstance(seed, bool):
            raise TypeError
        # Command lines give text, numpy gives its own integers.
        integer = int(seed)
        if not isinstance(seed, str) and integer != seed:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ArgumentTypeError(
            f"seed_everything({seed!r}) got a {type(seed).__name__}. A seed is an integer from {min_seed_value} to"
            f" {max_seed_value}. Pass one, for example seed_everything(42)."
        ) from None
    return integer


def _numpy(*, load: bool) -> Any:
    if "numpy" not in sys.modules and load:
        try:
            importlib.import_module("numpy")
        except ImportError:
            return None
    return sys.modules.get("numpy")


def _seed_generators(seed: int) -> None:
    random.seed(seed)
    numpy = _numpy(load=True)
    if numpy is not None:
        numpy.random.seed(seed)
    torch.manual_seed(seed)
    xla = _xla_in_use()
    if xla is not None:
        xla.set_rng_state(seed)


def _xla_in_use() -> Any:
    """torch_xla's generator, which torch does not seed; None where its runtime is not running."""
    # Asking for the state would start the runtime, and a process that has done so cannot fork any more.
    backend = getattr(sys.modules.get("torch_xla"), "_XLAC", None)
    return sys.modules["torch_xla.core.xla_model"] if backend and backend._xla_runtime_is_initialized() else None


def derive_seed(*parts: int) -> int:
    """A seed for (run seed, epoch, batch, …): well mixed, the same on every machine, from 1 to 2**63 - 1.

    Neighbouring parts give unrelated seeds, and (1, 23) another one than (12, 3).
    """
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % (2**63 - 1) + 1


def pl_worker_init_function(worker_id: int, rank: int | None = None) -> None:
    """`worker_init_fn` for a DataLoader: other random numbers in each worker of each process.

    Args:
        worker_id: As the DataLoader gives it.
        rank: The global rank of the process whose worker this is; None takes `rank_zero_only.rank`.
    """
    rank = rank_zero_only.rank if rank is None else rank
    # The DataLoader draws one seed per epoch and gives worker n that seed + n.
    base = torch.initial_seed() - worker_id
    seed = derive_seed(base, worker_id, rank)
    random.seed(seed)
    torch.manual_seed(seed)
    numpy = _numpy(load=True)
    if numpy is not None:
        numpy.random.seed([seed & max_seed_value, seed >> 32])


def collect_rng_state(include_cuda: bool = True) -> dict[str, Any]:
    """The state of the global generators: Python, torch, and where they are in use numpy, CUDA, MPS and XLA.

    Made of tensors, lists, numbers and strings: `torch.load(weights_only=True)` takes it.
    """
    numpy = _numpy(load=False)
    numpy_state = None if numpy is None else numpy.random.get_state(legacy=False)
    state = plain_rng_state(torch.get_rng_state(), random.getstate(), numpy_state)
    # Asking for the state would initialise CUDA, and a process that has done so cannot fork any more.
    if include_cuda and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    xla = _xla_in_use()
    if xla is not None:
        state["xla"] = xla.get_rng_state()
    return state


def plain_rng_state(
    torch_state: torch.Tensor, python_state: tuple[Any, ...], numpy_state: dict[str, Any] | None
) -> dict[str, Any]:
    """States of the three generators of the CPU, as those give them, in the form of `collect_rng_state`."""
    version, numbers, gauss_next = python_state
    words = torch.frombuffer(array("q", numbers), dtype=torch.int64)  # from a tuple, torch takes five times as long
    state = {"torch": torch_state, "python": [version, words, gauss_next]}
    # Programs may put another bit generator in; only this one has a state of this form.
    if numpy_state is not None and numpy_state["bit_generator"] == "MT19937":
        keys, position = numpy_state["state"]["key"], numpy_state["state"]["pos"]
        rest = [int(position), int(numpy_state["has_gauss"]), float(numpy_state["gauss"])]
        state["numpy"] = ["MT19937", torch.from_numpy(keys.astype("int64")), *rest]
    return state


def restore_rng_state(state: dict[str, Any]) -> None:
    """Put back what `collect_rng_state` gave; generators that it does not hold stay as they are.

    A state with more or fewer GPUs than this machine has restores those that are there.
    """
    torch.set_rng_state(state["torch"].cpu())
    version, numbers, gauss_next = state["python"]
    random.setstate((version, tuple(_as_list(numbers)), gauss_next))
    numpy = _numpy(load="numpy" in state)
    if numpy is not None and "numpy" in state:
        name, keys, *rest = state["numpy"]
        numpy.random.set_state((name, numpy.array(_as_list(keys), dtype=numpy.uint32), *rest))
    if state.get("cuda") and torch.cuda.device_count() > 0:
        for index, generator in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(generator.cpu(), index)
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"].cpu())
    xla = _xla_in_use()
    if xla is not None and "xla" in state:
        xla.set_rng_state(state["xla"])


def _as_list(numbers: Any) -> list[int]:
    # Checkpoints of PyTorch Lightning hold tuples and arrays.
    return numbers.tolist() if hasattr(numbers, "tolist") else list(numbers)


@contextmanager
def isolate_rng(include_cuda: bool = True) -> Iterator[None]:
    """Random numbers drawn inside leave no trace outside."""
    state = collect_rng_state(include_cuda)
    try:
        yield
    finally:
        restore_rng_state(state)
