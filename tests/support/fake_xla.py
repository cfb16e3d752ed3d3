"""A torch_xla whose devices are the CPU, and whose replicas are processes joined by gloo.

For what torch_xla itself cannot do without a TPU: replicas that exchange tensors. Only what we ask of it is here.
"""

import sys
from pathlib import Path

_FILES = {
    "__init__.py": """
import torch
from torch_xla import _XLAC, _internal, core, runtime

num_graphs = 0

def device(index=None):
    return torch.device("cpu")

def sync(wait=False):
    global num_graphs
    num_graphs += 1
""",
    "_XLAC.py": """
def _xla_runtime_is_initialized():
    from torch_xla import runtime
    return runtime.is_running
""",
    "runtime.py": """
import torch.distributed as dist

is_running = False

def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1

def global_ordinal():
    return dist.get_rank() if dist.is_initialized() else 0

def local_ordinal():
    return global_ordinal()

def host_index():
    return 0
""",
    "_internal/__init__.py": "",
    "_internal/tpu.py": """
def num_available_chips():
    return 2

def num_available_devices():
    return 2

def num_local_processes():
    return 2
""",
    "_internal/pjrt.py": """
import os
import torch.distributed as dist
from torch_xla import runtime

def initialize_multiprocess(local_rank, local_world_size):
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.PrefixStore("fake_xla", dist.TCPStore(address, port, local_world_size, is_master=False))
    dist.init_process_group("gloo", store=store, rank=local_rank, world_size=local_world_size)
    runtime.is_running = True
""",
    "core/__init__.py": "",
    "core/xla_model.py": """
import torch
import torch.distributed as dist

num_reductions = 0
_NAMES = {"sum": "SUM", "mul": "PRODUCT", "min": "MIN", "max": "MAX"}

def all_reduce(kind, inputs, scale=1.0):
    global num_reductions
    num_reductions += 1
    if isinstance(inputs, torch.Tensor):
        inputs = inputs.clone()
    for tensor in [inputs] if isinstance(inputs, torch.Tensor) else inputs:
        dist.all_reduce(tensor, op=getattr(dist.ReduceOp, _NAMES[kind]))
        tensor.mul_(scale) if scale != 1.0 else None
    return inputs

def all_gather(tensor, dim=0):
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts, dim)

def rendezvous(tag, payload=b"", replicas=()):
    payloads = [None] * dist.get_world_size()
    dist.all_gather_object(payloads, payload)
    return payloads

def get_rng_state():
    return 1

def set_rng_state(seed):
    pass
""",
}


def write_fake_xla(folder: Path) -> None:
    """Write the package into `folder`, which then belongs on `sys.path`."""
    for name, text in _FILES.items():
        path = folder / "torch_xla" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def forget_fake_xla() -> None:
    """Let the next import look for torch_xla anew."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_xla"]:
        del sys.modules[name]
