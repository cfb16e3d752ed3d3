"""Attention over a sequence of which each process has a part: exact, with exact gradients, in plain collectives.

| way | each process | communicates |
| --- | --- | --- |
| ring | attends with its queries to one part of keys and values after the other | keys and values, to its neighbour |
| ulysses | attends to the whole sequence with its share of the heads | all four tensors, all to all |

Parts are contiguous and as long as each other, in the order of the ranks of the group. Tensors are (batch, heads,
tokens, features), as for `torch.nn.functional.scaled_dot_product_attention`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.trees import map_tensors

RING, ULYSSES = "ring", "ulysses"


def ring_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    group: Any,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Attention of the queries that are here to the keys and values of all processes of `group`, in their order.

    Computed block by block with a running softmax, in float32 or wider; no process ever holds all keys.

    Args:
        query, key, value: The parts that are here, of the same number of tokens. Queries may have a multiple of the
            heads of keys and values.
        group: A process group; all of it must call.
        is_causal: Does no token see later ones?
        scale: Of the products; by default one over the root of the number of features.
    """
    if query.shape[-2] != key.shape[-2]:
        raise ConfigurationError(
            f"ring_attention(...) got {query.shape[-2]} queries and {key.shape[-2]} keys. Each process has the same"
            " part of the sequence of both. Let attention between two sequences be, or use 'ulysses'."
        )
    if key.shape != value.shape:
        raise ConfigurationError(
            f"ring_attention(...) got keys of shape {tuple(key.shape)} and values of shape {tuple(value.shape)}. Both"
            " go round the ring in one tensor. Give them one shape, or use 'ulysses'."
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    answer: Tensor = _Ring.apply(query, key, value, factor, is_causal, group)  # type: ignore[no-untyped-call]
    return answer


def ulysses_attention(query: Tensor, key: Tensor, value: Tensor, *, group: Any, **options: Any) -> Tensor:
    """Attention over the whole sequence: each process takes its share of the heads, and gives the answers back.

    Args:
        query, key, value: The parts that are here, with a number of heads that the size of the group divides.
        group: A process group; all of it must call.
        options: For torch's own attention.
    """
    size = dist.get_world_size(group)
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 4:
            raise ConfigurationError(
                f"ulysses_attention({name}=...) got a tensor of shape {tuple(tensor.shape)}. Each process takes some of"
                " the heads, which are the second of four axes: (batch, heads, tokens, features)."
                " Add an axis of heads, or use 'ring'."
            )
        if tensor.shape[1] % size:
            raise ConfigurationError(
                f"ulysses_attention({name}=...) has {tensor.shape[1]} heads for {size} processes. Each takes as many of"
                " them. Use 'ring', or a number of processes that divides the heads."
            )
    query, key, value = (_heads_to_tokens(tensor, group) for tensor in (query, key, value))
    return _tokens_to_heads(functional.scaled_dot_product_attention(query, key, value, **options), group)


def attend_together(module: nn.Module, name: str, way: str, group: Any) -> None:
    """Let the attention inside of a part of a module be over the sequence of all processes of `group`.

    Args:
        module: Its forward calls `scaled_dot_product_attention`.
        name: How errors call it.
        way: "ring" or "ulysses".
        group: A process group.

    Raises:
        ConfigurationError: If the part holds an attention of torch that does not pass there.
    """
    check_attention(module, name, way)
    # On the instance: no wrapper whose name would appear in the names of parameters.
    module.__dict__["forward"] = partial(_forward, module.forward, _Together(name, way, group))


def check_attention(module: nn.Module, name: str, way: str) -> None:
    """Refuse a part of a module that holds an attention out of reach; arguments as for `attend_together`."""
    if any(isinstance(part, nn.MultiheadAttention) for part in module.modules()):
        raise ConfigurationError(
            f"ModelParallelStrategy(plan={{...: {way!r}}}) names {name!r}, which holds a torch.nn.MultiheadAttention."
            " It computes its attention out of reach, so that each process would attend to its own part only. Write it"
            " with torch.nn.functional.scaled_dot_product_attention."
        )


def part_of_sequence(batch: Any, rank: int, size: int, axis: int = 1) -> Any:
    """What one process sees of a batch: of each tensor that has this axis, its part of it; the rest as it is.

    Raises:
        ConfigurationError: If a length is no multiple of the number of parts.
    """

    def cut(tensor: Tensor) -> Tensor:
        if tensor.ndim <= axis:
            return tensor
        if tensor.shape[axis] % size:
            raise ConfigurationError(
                f"part_of_sequence(batch, axis={axis}) got a tensor of shape {tuple(tensor.shape)} for {size}"
                f" processes. All parts of a sequence are of the same length. Pad it to a multiple of {size}."
            )
        return tensor.chunk(size, axis)[rank].contiguous()

    return batch if size == 1 else map_tensors(batch, cut)


@dataclass(frozen=True)
class _Together:
    """Where attention is over all processes of a group, and how."""

    name: str
    way: str
    group: Any

    def __deepcopy__(self, memo: dict[int, Any]) -> _Together:
        return self  # a copy of the module works with the same processes


def _forward(forward: Callable[..., Any], where: _Together, *args: Any, **kwargs: Any) -> Any:
    with _OverAllProcesses(where.way, where.group) as attention:
        output = forward(*args, **kwargs)
    if not attention.was_used:
        raise ConfigurationError(
            f"ModelParallelStrategy(plan={{...: {where.way!r}}}) names {where.name!r}, whose forward did not call"
            " torch.nn.functional.scaled_dot_product_attention. Only that is computed over all processes."
            " Name the modules that call it, or call it there."
        )
    return output


class _OverAllProcesses(TorchFunctionMode):
    """Inside, torch's attention is that over the sequence of all processes."""

    def __init__(self, way: str, group: Any) -> None:
        super().__init__()
        self._way = way
        self._group = group
        self.was_used = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.was_used = True
        return self._attend(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if attn_mask is not None:
            raise ArgumentTypeError(
                "scaled_dot_product_attention(attn_mask=...) was called with context_parallel_size above 1. A mask"
                " would have to be of the whole sequence, and each process has a part of it."
                " Leave it out; pass is_causal=True if no token may see later ones."
            )
        if self._way == ULYSSES:
            options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
            return ulysses_attention(query, key, value, group=self._group, **options)
        if dropout_p:
            raise ConfigurationError(
                f"scaled_dot_product_attention(dropout_p={dropout_p}) cannot be had in a ring: blocks are computed"
                " twice, and would drop other numbers. Set the dropout of attention to 0, or use 'ulysses'."
            )
        return ring_attention(query, key, value, group=self._group, is_causal=is_causal, scale=scale)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, is_causal: bool, group: Any
    ) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        size, rank = dist.get_world_size(group), dist.get_rank(group)
        here = torch.stack([key, value])
        total: Tensor | None = None
        log_sum: Tensor | None = None
        for step in range(size):
            source = (rank - step) % size
            arriving = _pass_on(here, group) if step < size - 1 else None
            if source <= rank or not is_causal:
                scores = _scores(query, here[0], scale, wide, is_causal and source == rank)
                block_sum = scores.logsumexp(-1, keepdim=True)
                block = (scores - block_sum).exp() @ here[1].to(wide)
                if total is None or log_sum is None:
                    total, log_sum = block, block_sum
                else:
                    both = torch.logaddexp(log_sum, block_sum)
                    total = total * (log_sum - both).exp() + block * (block_sum - both).exp()
                    log_sum = both
            if arriving is not None:
                here = arriving()
        assert total is not None  # its own block is seen by everybody
        ctx.save_for_backward(query, key, value, total, log_sum)
        ctx.rest = scale, is_causal, group
        return total.to(query.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value, total, log_sum = ctx.saved_tensors
        scale, is_causal, group = ctx.rest
        size, rank = dist.get_world_size(group), dist.get_rank(group)
        grad = grad.to(total.dtype)
        shift = (grad * total).sum(-1, keepdim=True)
        wide_query = query.to(total.dtype)
        query_grad = torch.zeros_like(wide_query)
        # Keys and values go round with the gradients that they have got so far, and these come home at the end.
        here = torch.stack([key, value]).to(total.dtype)
        here = torch.cat([here, torch.zeros_like(here)])
        for step in range(size):
            source = (rank - step) % size
            if source <= rank or not is_causal:
                block_key, block_value = here[0], here[1]
                scores = _scores(query, block_key, scale, total.dtype, is_causal and source == rank)
                weights = (scores - log_sum).exp()
                here[3] += weights.mT @ grad
                score_grad = weights * (grad @ block_value.mT - shift) * scale
                query_grad += score_grad @ block_key
                here[2] += score_grad.mT @ wide_query
            if size > 1:
                here = _pass_on(here, group)()
        return query_grad.to(query.dtype), here[2].to(key.dtype), here[3].to(value.dtype), None, None, None


def _scores(query: Tensor, key: Tensor, scale: float, dtype: torch.dtype, is_diagonal: bool) -> Tensor:
    scores = query.to(dtype) @ key.to(dtype).mT * scale
    if is_diagonal:
        num_tokens = scores.shape[-1]
        later = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    return scores


def _pass_on(tensor: Tensor, group: Any) -> Callable[[], Tensor]:
    """Send to the next process, and begin to receive from the one before; call what comes back to have it."""
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    sent, received = tensor.contiguous(), torch.empty_like(tensor, memory_format=torch.contiguous_format)
    to, whence = (dist.get_global_rank(group, place % size) for place in (rank + 1, rank - 1))
    waits = dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, sent, to, group), dist.P2POp(dist.irecv, received, whence, group)]
    )

    def arrived() -> Tensor:
        for wait in waits:
            wait.wait()
        return received

    return arrived


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _exchanged(tensor, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _exchanged(grad, ctx.group), None


def _exchanged(tensor: Tensor, group: Any) -> Tensor:
    """The first axis counts processes: send each its part, and get one from each."""
    sent = tensor.contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received


def _heads_to_tokens(tensor: Tensor, group: Any) -> Tensor:
    """(batch, all heads, some tokens, features) to (batch, some heads, all tokens, features)."""
    by_process = tensor.unflatten(1, (dist.get_world_size(group), -1)).movedim(1, 0)
    exchanged: Tensor = _AllToAll.apply(by_process, group)  # type: ignore[no-untyped-call]
    return exchanged.movedim(0, 2).flatten(2, 3)


def _tokens_to_heads(tensor: Tensor, group: Any) -> Tensor:
    """(batch, some heads, all tokens, features) to (batch, all heads, some tokens, features)."""
    by_process = tensor.unflatten(2, (dist.get_world_size(group), -1)).movedim(2, 0)
    exchanged: Tensor = _AllToAll.apply(by_process, group)  # type: ignore[no-untyped-call]
    return exchanged.movedim(0, 1).flatten(1, 2)
