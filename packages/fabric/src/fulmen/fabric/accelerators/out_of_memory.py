"""Does an error say that memory ran out? And: give back what can be given back.

Allocators report it by type or by words, each in its own; what is listed here are the words of their sources.
"""

from __future__ import annotations

import errno
import gc

import torch

_CPU_WORDS = (
    "DefaultCPUAllocator: can't allocate memory",  # c10/core/impl/alloc_cpu.cpp
    "DefaultCPUAllocator: not enough memory",  # the same, where `posix_memalign` is missing
)
_WORDS = (
    "out of memory",  # c10/cuda/CUDACachingAllocator.cpp, the CUDA driver's own message, MPSAllocator.mm
    *_CPU_WORDS,
    "Cannot allocate memory",  # strerror(ENOMEM): mmap of shared memory, fork
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",  # cuBLAS makes its handle when it is first used
    "CUSOLVER_STATUS_ALLOC_FAILED",
    # Without memory for a workspace cuDNN finds no algorithm that it could run.
    "Unable to find a valid cuDNN algorithm to run convolution",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input",
    "RESOURCE_EXHAUSTED",  # XLA
)


def is_out_of_memory(exception: BaseException) -> bool:
    """Did memory run out: of the machine, of a GPU, or for cuDNN's workspace?

    Errors of DataLoader workers are known by their text, which quotes the worker's.
    """
    if isinstance(exception, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(exception, OSError):
        return exception.errno == errno.ENOMEM
    return isinstance(exception, RuntimeError) and any(words in str(exception) for words in _WORDS)


def is_cuda_out_of_memory(exception: BaseException) -> bool:
    """Did the memory of a CUDA GPU run out?"""
    return isinstance(exception, RuntimeError) and "CUDA" in str(exception) and "out of memory" in str(exception)


def is_cudnn_snafu(exception: BaseException) -> bool:
    """Had cuDNN no memory for a workspace?"""
    return isinstance(exception, RuntimeError) and "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED." in str(exception)


def is_out_of_cpu_memory(exception: BaseException) -> bool:
    """Did the memory of the machine run out, when a tensor asked for it?"""
    return isinstance(exception, RuntimeError) and any(words in str(exception) for words in _CPU_WORDS)


def release_memory() -> None:
    """Free what nobody refers to, and hand the allocators' caches back to the device."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


# The names that programs written for the reference import.
is_oom_error = is_out_of_memory
garbage_collection_cuda = release_memory
