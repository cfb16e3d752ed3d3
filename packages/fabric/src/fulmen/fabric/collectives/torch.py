"""The collective operations of `torch.distributed`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar, Self, cast

import torch
import torch.distributed as dist
from torch import Tensor

from fulmen.fabric.collectives.base import Collective
from fulmen.fabric.collectives.tensors import parse_reduce_op
from fulmen.fabric.environments.variables import environment_variables
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, NotLaunchedError
from fulmen.fabric.gloo_threads import close_group
from fulmen.fabric.types import CollectibleGroup, ReduceOp


class TorchCollective(Collective):
    """A group of `torch.distributed`: that of all processes, or one of its own after `create_group`.

    Attributes:
        manages_default_group: Does `teardown` also close the connection of all processes? `setup` sets it where it
            opens that connection.
        addr_key, port_key: The environment variables that say where processes meet.

    Raises:
        ConfigurationError: If this build of torch has no distributed.
    """

    manages_default_group = False
    addr_key: ClassVar[str] = "MASTER_ADDR"
    port_key: ClassVar[str] = "MASTER_PORT"

    def __init__(self) -> None:
        if not self.is_available():
            raise ConfigurationError(
                "TorchCollective() cannot be used. This build of torch has no torch.distributed."
                " Install a build with it, or use SingleDeviceCollective()."
            )
        super().__init__()

    @property
    def group(self) -> CollectibleGroup:
        """The group of its own, or that of all processes."""
        if self._group is not None:
            return self._group
        if not self.is_initialized():
            raise NotLaunchedError(
                f"{type(self).__name__} was used before the processes were connected. Operations need their group."
                " Call `setup()` first, or `fabric.launch()`."
            )
        return cast(CollectibleGroup, dist.group.WORLD)

    @property
    def rank(self) -> int:
        """The rank of this process within the group; -1 if it is no member."""
        return dist.get_rank(self._native)

    @property
    def world_size(self) -> int:
        """How many processes are in the group; -1 if this process is no member."""
        return dist.get_world_size(self._native)

    def setup(self, main_address: str | None = None, main_port: str | None = None, **kwargs: Any) -> Self:
        """Open the connection of all processes, unless it is open.

        Args:
            main_address, main_port: Where they meet; else the environment variables say so.
            kwargs: Those of `torch.distributed.init_process_group`.
        """
        if self.is_initialized():
            return self
        meeting = {self.addr_key: main_address, self.port_key: main_port}
        with environment_variables({name: str(value) for name, value in meeting.items() if value is not None}):
            super().setup(**kwargs)
        self.manages_default_group = True
        return self

    def teardown(self) -> Self:
        """Give up the group, and the connection of all processes if `setup` has opened it."""
        # Who is no member got a stand-in that cannot be destroyed.
        if cast(object, self._group) is dist.GroupMember.NON_GROUP_MEMBER:
            self._group = None
        super().teardown()
        if self.manages_default_group:
            close_group()
        self.manages_default_group = False
        return self

    @classmethod
    def is_available(cls) -> bool:
        """Has this build of torch distributed?"""
        return dist.is_available()

    @classmethod
    def is_initialized(cls) -> bool:
        """Is the process group of all processes open?"""
        return cls.is_available() and dist.is_initialized()

    @classmethod
    def init_group(cls, **kwargs: Any) -> None:
        """Open the process group of all processes; `kwargs` are those of `init_process_group`.

        Raises:
            NotLaunchedError: If it is open.
        """
        if cls.is_initialized():
            raise NotLaunchedError(
                f"{cls.__name__}.init_group() was called, and the process group of all processes is open."
                " A process has one. Use it, or close it by `torch.distributed.destroy_process_group()`."
            )
        dist.init_process_group(**kwargs)

    @classmethod
    def new_group(cls, **kwargs: Any) -> CollectibleGroup:
        """A new group; `kwargs` are those of `torch.distributed.new_group`. All processes call it, also non-members."""
        return cast(CollectibleGroup, dist.new_group(**kwargs))

    @classmethod
    def destroy_group(cls, group: CollectibleGroup) -> None:
        """Give up a group."""
        dist.destroy_process_group(cast(Any, group))

    def broadcast(self, tensor: Tensor, src: int) -> Tensor:
        """`tensor` of process `src`, in all."""
        dist.broadcast(tensor, src, group=self._native)
        return tensor

    def all_reduce(self, tensor: Tensor, op: ReduceOp = "sum") -> Tensor:
        """The reduction of all tensors, in all processes."""
        operation, is_mean = _operation(op, tensor)
        dist.all_reduce(tensor, op=operation, group=self._native)
        return tensor.div_(self.world_size) if is_mean else tensor

    def reduce(self, tensor: Tensor, dst: int, op: ReduceOp = "sum") -> Tensor:
        """The reduction of all tensors, in process `dst`."""
        operation, is_mean = _operation(op, tensor)
        dist.reduce(tensor, dst, op=operation, group=self._native)
        return tensor.div_(self.world_size) if is_mean and dist.get_rank() == dst else tensor

    def all_gather(self, tensor_list: list[Tensor], tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, into `tensor_list`."""
        dist.all_gather(tensor_list, tensor, group=self._native)
        return tensor_list

    def gather(self, tensor: Tensor, gather_list: list[Tensor], dst: int = 0) -> list[Tensor]:
        """The tensors of all processes, into the `gather_list` of process `dst`."""
        dist.gather(tensor, gather_list if dist.get_rank() == dst else None, dst, group=self._native)
        return gather_list

    def scatter(self, tensor: Tensor, scatter_list: list[Tensor], src: int = 0) -> Tensor:
        """Into `tensor`, this process's part of the `scatter_list` of process `src`."""
        dist.scatter(tensor, scatter_list if dist.get_rank() == src else None, src, group=self._native)
        return tensor

    def reduce_scatter(self, output: Tensor, input_list: list[Tensor], op: ReduceOp = "sum") -> Tensor:
        """Into `output`, the reduction of this process's part of all input lists."""
        operation, is_mean = _operation(op, output)
        dist.reduce_scatter(output, input_list, op=operation, group=self._native)
        return output.div_(self.world_size) if is_mean else output

    def all_to_all(self, output_tensor_list: list[Tensor], input_tensor_list: list[Tensor]) -> list[Tensor]:
        """Into `output_tensor_list`, what each process has for this one in its input list."""
        try:
            dist.all_to_all(output_tensor_list, input_tensor_list, group=self._native)
        except RuntimeError as error:
            if "does not support alltoall" not in str(error):
                raise
            self._exchange_by_pairs(output_tensor_list, input_tensor_list)  # gloo of torch 2.9
        return output_tensor_list

    def _exchange_by_pairs(self, outputs: list[Tensor], inputs: list[Tensor]) -> None:
        rank = dist.get_rank(self._native)
        outputs[rank].copy_(inputs[rank])
        pending = []
        for place in (place for place in range(len(inputs)) if place != rank):
            other = {"group": self._native, "group_src": place}, {"group": self._native, "group_dst": place}
            pending += [dist.irecv(outputs[place], **other[0]), dist.isend(inputs[place], **other[1])]
        for work in pending:
            assert work is not None, "this process is in the group"
            work.wait()

    def send(self, tensor: Tensor, dst: int, tag: int = 0) -> None:
        """Send `tensor` to process `dst`."""
        dist.send(tensor, dst, tag=tag, group=self._native)

    def recv(self, tensor: Tensor, src: int | None = None, tag: int = 0) -> Tensor:
        """Into `tensor`, what process `src` (None: any) sent."""
        dist.recv(tensor, src, tag=tag, group=self._native)
        return tensor

    def barrier(self, device_ids: list[int] | None = None) -> None:
        """Wait until all processes of the group are here."""
        dist.barrier(group=self._native, device_ids=device_ids)

    def monitored_barrier(self, timeout: timedelta | None = None, wait_all_ranks: bool = False) -> None:
        """As `barrier`; the error after the timeout names a process that did not come, or all of them. Gloo only."""
        dist.monitored_barrier(group=self._native, timeout=timeout, wait_all_ranks=wait_all_ranks)

    # Objects travel by pickle: only among processes of one program.

    def all_gather_object(self, object_list: list[Any], obj: Any) -> list[Any]:
        """The objects of all processes, into `object_list`, which is as long as the group is large."""
        dist.all_gather_object(object_list, obj, group=self._native)
        return object_list

    def broadcast_object_list(self, object_list: list[Any], src: int, device: torch.device | None = None) -> list[Any]:
        """Into `object_list`, the objects of the list of process `src`. `device`: over which they travel."""
        dist.broadcast_object_list(object_list, src, group=self._native, device=device)
        return object_list

    def gather_object(self, obj: Any, object_gather_list: list[Any], dst: int = 0) -> list[Any]:
        """The objects of all processes, into the `object_gather_list` of process `dst`."""
        dist.gather_object(obj, object_gather_list if dist.get_rank() == dst else None, dst, group=self._native)
        return object_gather_list

    def scatter_object_list(
        self, scatter_object_output_list: list[Any], scatter_object_input_list: list[Any], src: int = 0
    ) -> list[Any]:
        """Into the first place of the output list, this process's part of the input list of process `src`."""
        dist.scatter_object_list(scatter_object_output_list, scatter_object_input_list, src, group=self._native)
        return scatter_object_output_list

    @property
    def _native(self) -> Any:
        return self.group


def _operation(op: ReduceOp, tensor: Tensor) -> tuple[Any, bool]:
    operation, is_mean = parse_reduce_op(op)
    if is_mean and not (tensor.is_floating_point() or tensor.is_complex()):
        raise ArgumentTypeError(
            f"op={op!r} was asked of a tensor of {tensor.dtype}. The mean is written into the tensor itself, and whole"
            " numbers cannot hold it. Convert it by `.float()`, or pass op='sum'."
        )
    return operation, is_mean
