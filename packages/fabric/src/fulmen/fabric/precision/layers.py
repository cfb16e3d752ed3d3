"""Put other layers in the place of some of a module's: in a module that is there, or while one is made.

Nothing of torch is patched: layers are exchanged when they are registered as children, through torch's own hook.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch.nn import Module
from torch.nn.modules.module import register_module_module_registration_hook

# What to put in the place of a layer; None to leave it.
Exchange = Callable[[Module], Module | None]


def exchange_layers(module: Module, exchange: Exchange, *, is_kept: Callable[[str], bool] | None = None) -> Module:
    """`module` with its layers exchanged; another object only if it is such a layer itself.

    A layer that stands in several places is exchanged once. One that shares a parameter with another stays, for the
    two would part.

    Args:
        module: What to walk. Each old layer is let go before the next is made.
        exchange: Called for each layer; what it returns is put into the mode (training or not) of the layer.
        is_kept: True for the full names of layers to leave as they are.
    """
    places = _places(module, is_kept)
    while places:
        layer, spots = places.popitem()
        replacement = exchange(layer)
        if replacement is not None:
            replacement.train(layer.training)
            for parent, name in spots:
                parent.register_module(name, replacement)
    root = exchange(module)
    return module if root is None else root.train(module.training)


def _places(module: Module, is_kept: Callable[[str], bool] | None) -> dict[Module, list[tuple[Module, str]]]:
    """Parents of each layer that may go, and its name in them."""
    owners = Counter(id(p) for layer in module.modules() for p in layer.parameters(recurse=False))
    places: dict[Module, list[tuple[Module, str]]] = {}
    for prefix, parent in module.named_modules():
        for name, child in parent._modules.items():  # named_children() leaves out what it has seen
            full_name = f"{prefix}.{name}" if prefix else name
            if child is None or (is_kept is not None and is_kept(full_name)):
                continue
            if all(owners[id(p)] == 1 for p in child.parameters(recurse=False)):
                places.setdefault(child, []).append((parent, name))
    return places


@contextmanager
def exchanging_layers(exchange: Exchange) -> Iterator[None]:
    """Layers that become part of a module inside are exchanged as they do, one by one.

    So that of a large model no more than one layer is ever held twice.
    """

    def exchange_child(_parent: Module, _name: str, child: Module | None) -> Module | None:
        return None if child is None else exchange(child)

    handle = register_module_module_registration_hook(exchange_child)  # type: ignore[arg-type]  # may return a module
    try:
        yield
    finally:
        handle.remove()
