import errno

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from fulmen.fabric.accelerators.out_of_memory import is_out_of_memory, release_memory


def raised_by(function):
    with pytest.raises(Exception) as caught:  # noqa: PT011  # which one is the question
        function()
    return caught.value


class Greedy(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return torch.empty(2**62, dtype=torch.uint8)


def test_the_allocator_of_the_cpu_is_understood_as_it_speaks_here():
    assert is_out_of_memory(raised_by(lambda: torch.empty(2**62, dtype=torch.uint8)))


def test_so_is_a_worker_of_a_dataloader():
    batches = iter(DataLoader(Greedy(), num_workers=1))
    assert is_out_of_memory(raised_by(lambda: next(batches)))
    assert list(batches) == []  # the worker of a loader that was not read to its end is waited for 5 s


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:83] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4611686018427387904 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError(
            "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input."
        ),
        RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
        RuntimeError("unable to mmap 1024 bytes from file </torch_1>: Cannot allocate memory (12)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=lambda error: str(error)[:40] or type(error).__name__,
)
def test_out_of_memory(error):
    assert is_out_of_memory(error)


@given(
    st.sampled_from([RuntimeError, ValueError, OSError, KeyError, Exception, KeyboardInterrupt]), st.text(max_size=40)
)
def test_other_errors_are_not(kind, text):
    assert not is_out_of_memory(kind(text))


@pytest.mark.parametrize("error", [ValueError("CUDA out of memory"), OSError(errno.ENOENT, "no such file")])
def test_words_alone_do_not_make_one(error):
    assert not is_out_of_memory(error)


def test_memory_is_released_without_starting_a_gpu():
    release_memory()
    assert not torch.cuda.is_initialized()
