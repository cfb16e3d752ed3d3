"""The state of a module, under the names that it has when no part of it is compiled."""

from typing import Any

from torch import nn

from fulmen.fabric.compiled import fit_names, make_plain


class PlainNames(nn.Module):
    """A module that saves the same names, and loads them, whether parts of it went through `torch.compile` or not."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As in `torch.nn.Module`; without the names that `torch.compile` gives to its wrappers."""
        state: Any = super().state_dict(*args, **kwargs)
        make_plain(self, state, kwargs.get("prefix", args[1] if len(args) > 1 else ""))
        return state

    # Called for a module wherever it stands in another one, which load_state_dict is not.
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        fit_names(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
