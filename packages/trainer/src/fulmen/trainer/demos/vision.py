"""Models of torchvision by their names."""

from typing import Any

from torch import nn

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.optional_packages import require


def get_torchvision_model(model_name: str, **kwargs: Any) -> nn.Module:
    """A model of torchvision.

    Args:
        model_name: As `torchvision.models.list_models()` has it.
        kwargs: For the model, such as `weights`.

    Raises:
        MissingPackageError: If torchvision is not installed.
        ConfigurationError: If it has no such model.
    """
    models: Any = require("torchvision.models", purpose=f"get_torchvision_model({model_name!r})")
    try:
        build = models.get_model_builder(model_name)
    except ValueError as error:
        raise ConfigurationError(
            f"get_torchvision_model({model_name!r}) is unknown to torchvision. It knows {models.list_models()}."
            " Pass one of these."
        ) from error
    model: nn.Module = build(**kwargs)
    return model
