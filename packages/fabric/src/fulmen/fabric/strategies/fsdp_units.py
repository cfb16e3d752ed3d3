"""Which parts of a module are split, or computed again in backward, as one.

A *unit* is a part whose parameters are gathered together right before it runs, and let go after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeAlias

from torch import nn
from torch.nn import Module
from torch.utils.checkpoint import checkpoint

from fulmen.fabric.errors import ArgumentTypeError

# Classes of modules; or a function of (module, recurse, nonwrapped_numel), as in `torch.distributed.fsdp.wrap`.
Policy: TypeAlias = set[type[Module]] | Callable[..., bool]


def check_policy(argument: str, policy: object, caller: str = "FSDPStrategy") -> None:
    """Refuse what is neither classes of modules nor a function.

    Args:
        argument: Its name; quoted in errors.
        policy: What was passed.
        caller: To whom.

    Raises:
        ArgumentTypeError: If so.
    """
    if policy is None or (callable(policy) and not isinstance(policy, type)):
        return
    if not isinstance(policy, set | frozenset | list | tuple):
        raise ArgumentTypeError(
            f"{caller}({argument}={policy!r}) is no policy. It says which parts of a module are taken together."
            " Pass a set of module classes, such as {Block}, or a function of (module, recurse, nonwrapped_numel)."
        )
    for kind in policy:
        if not isinstance(kind, type) or not issubclass(kind, Module):
            raise ArgumentTypeError(
                f"{caller}({argument}={policy!r}) holds {kind!r}, which is no class of modules. It says which parts"
                " of a module are taken together. Pass a set of module classes, such as {Block}."
            )


def choose(root: Module, policy: Policy | None) -> list[Module]:
    """The parts of `root` that the policy names, inner ones before those that hold them; `root` may be among them.

    A part that has no parameters, or no forward (a `ModuleList`), is left to the part that holds it.
    """
    if policy is None:
        return []
    chosen: list[Module] = []
    if callable(policy):
        _ask(root, policy, chosen, set())
    else:
        kinds = tuple(policy)
        chosen = [part for part in _inner_first(root, set()) if isinstance(part, kinds)]
    return [part for part in chosen if _runs(part) and next(part.parameters(), None) is not None]


def _inner_first(module: Module, seen: set[Module]) -> Iterator[Module]:
    if module not in seen:
        seen.add(module)
        for child in module.children():
            yield from _inner_first(child, seen)
        yield module


def _ask(module: Module, policy: Callable[..., bool], chosen: list[Module], seen: set[Module]) -> int:
    """Ask the policy about a module and what is in it; how many numbers of it are in chosen parts."""
    if module in seen:
        return 0
    seen.add(module)
    numel = sum(parameter.numel() for parameter in module.parameters())
    if not policy(module=module, recurse=True, nonwrapped_numel=numel):
        return 0
    taken = sum(_ask(child, policy, chosen, seen) for child in module.children())
    if not policy(module=module, recurse=False, nonwrapped_numel=numel - taken):
        return taken
    chosen.append(module)
    return numel


def _runs(module: Module) -> bool:
    return not isinstance(module, nn.ModuleList | nn.ModuleDict | nn.ParameterList | nn.ParameterDict)


def recompute(parts: Iterable[Module]) -> None:
    """Let each part forget its activations, and compute them again in backward."""
    for part in parts:
        # On the instance: no wrapper whose name would appear in the names of parameters.
        part.__dict__["forward"] = partial(checkpoint, part.forward, use_reentrant=False)
