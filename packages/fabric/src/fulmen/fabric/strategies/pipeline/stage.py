"""One stage, as the schedules of `torch.distributed.pipelining` run it, right also where torch's own is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def stage_class() -> Any:
    """A `PipelineStage`; made when it is needed, for torch's is slow to load.

    It is called with a function that says whether gradients are to wait, and then with the arguments of torch's.
    """
    from torch.distributed.pipelining import PipelineStage

    class Stage(PipelineStage):
        """Gradients are exchanged where an optimizer step follows."""

        def __init__(self, waits: Callable[[], bool], *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._is_waiting = waits
            # torch finds weights on the ways to what arrives, and where no gradient goes back there is no way.
            self._goes_back = self.is_first or any(one.requires_grad for one in kwargs["input_args"])
            self._done_at_once: set[int] = set()

        def forward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward_one_chunk(*args, **kwargs)
            self.output_chunks.clear()  # torch would join losses, and keep what they have come from
            return output

        def backward_one_chunk(
            self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False
        ) -> None:
            at_once = not full_backward and not self._goes_back
            super().backward_one_chunk(bwd_chunk_id, loss, full_backward or at_once, last_backward)
            if at_once:
                self._done_at_once.add(bwd_chunk_id)

        def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
            if bwd_chunk_id in self._done_at_once:
                self._done_at_once.remove(bwd_chunk_id)
            else:
                super().backward_weight_one_chunk(bwd_chunk_id, last_backward)

        def backward_maybe_with_nosync(
            self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False
        ) -> Any:
            last_backward = last_backward and not self._is_waiting()  # torch 2.9 exchanges gradients after it
            if backward_type != "input":
                return super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
            ends = _Ends(bwd_kwargs["stage_output"], bwd_kwargs["output_grads"])  # torch detaches them
            gradients, found = super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
            groups = found or []
            apart = [group for group in groups if len(group["intermediates"]) == 1]
            if len(apart) < len(groups):
                # A weight that meets several others may be in the group of each.
                nodes = {node for group in groups if len(group["intermediates"]) > 1 for node in group["params"]}
                ends.add_gradients(list(nodes), list(self.submod.parameters()))
            return gradients, apart

        # In a V, two stages that follow each other are on one process. torch hands gradients from one to the other also
        # where there are none.
        def get_local_bwd_output(self, mb_index: int) -> Any:
            return super().get_local_bwd_output(mb_index) if self.has_backward else ()  # type: ignore[no-untyped-call]  # torch's

        def set_local_bwd_input(self, next_stage_bwd_outputs: Any, mb_index: int) -> None:
            if self.has_backward:
                super().set_local_bwd_input(next_stage_bwd_outputs, mb_index)

        def perform_reduce_grad(self, grad_scale_factor: int) -> None:
            if not self._is_waiting():
                super().perform_reduce_grad(grad_scale_factor)

        def _post_metadata_inference_cleanup(self) -> None:
            # Shapes are given, so nothing has run. torch would take away gradients, which are of batches before.
            pass

        def _get_init_p2p_neighbors_ops(self) -> Any:
            # NCCL needs a first exchange. That of torch 2.9 sends eight bytes where gloo awaits four, in a V to itself.
            return [] if self.device.type == "cpu" else super()._get_init_p2p_neighbors_ops()

        def _validate_fwd_outputs(self, outputs: Any) -> None:
            # torch 2.9 compares types and strides with those of the rehearsal; a loss may have any.
            pass

    return Stage


class _Ends:
    """Where backward of a stage begins.

    Weights to which there are several ways, as of a layer that is called twice, torch cannot leave for later: of what
    follows from itself it would go through the graph twice. Their gradients are computed here, from the beginning.
    """

    def __init__(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None] | None) -> None:
        given = [None] * len(outputs) if gradients is None else gradients
        trained = [(one, grad) for one, grad in zip(outputs, given, strict=True) if one.requires_grad]
        self._edges = [torch.autograd.graph.get_gradient_edge(one) for one, _ in trained]
        self._gradients = [torch.ones_like(one) if grad is None else grad for one, grad in trained]

    def add_gradients(self, nodes: Sequence[Any], weights: Sequence[Tensor]) -> None:
        """Add to the gradients of those weights that accumulate at these nodes of the graph."""
        found = torch.autograd.grad(
            self._edges,
            [torch.autograd.graph.GradientEdge(node, 0) for node in nodes],
            self._gradients,
            retain_graph=True,
        )
        at = {torch.autograd.graph.get_gradient_edge(one).node: one for one in weights if one.requires_grad}
        for node, gradient in zip(nodes, found, strict=True):
            weight = at[node]
            weight.grad = gradient if weight.grad is None else weight.grad + gradient
