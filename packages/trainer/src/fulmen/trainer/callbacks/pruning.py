"""Prune weights while training."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fulmen.fabric.class_names import class_name
from fulmen.fabric.compiled import plain_name
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.rank_zero import rank_zero_info
from fulmen.trainer._typing import Trainer
from fulmen.trainer.callbacks.masked_weights import (
    draw_anew,
    is_masked,
    keeping_order,
    mask_of,
    num_zeros,
    overwrite,
    parameter_of,
    plain_state,
    put_mask,
    refresh,
    take_mask_off,
)
from fulmen.trainer.callbacks.pruning_method import apply_to_all, choose_method
from fulmen.trainer.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
from fulmen.trainer.callbacks.weight_averaging import WeightAveraging
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule

_PARAM_TUPLE = tuple[nn.Module, str]
_PARAM_LIST = Sequence[_PARAM_TUPLE]
_CONTAINERS = (LightningModule, nn.Sequential, nn.ModuleList, nn.ModuleDict)


class ModelPruning(Callback):
    """Prunes weights by `torch.nn.utils.prune` at the end of epochs: they are zero from then on, and not trained.

    Pruning adds up: each time, `amount` of the weights that are left. Checkpoints hold plain weights with zeros, and a
    fit that goes on from one prunes and trains exactly as one that was not interrupted.

    With the lottery ticket hypothesis (https://arxiv.org/abs/1803.03635) the weights that are left go back to their
    first values when the next epoch begins; checkpoints and the end of the fit hold trained ones.

    With a callback that averages weights, pass that one first: the average is pruned, too.

    Args:
        pruning_fn: "l1_unstructured", "random_unstructured", "ln_structured", "random_structured", a subclass of
            `torch.nn.utils.prune.BasePruningMethod`, or a function `f(layer, name, amount=...)`.
        parameters_to_prune: Pairs of a layer and the name of its parameter; empty: those of all layers.
        parameter_names: Which of "weight" and "bias" of all layers; None: both.
        use_global_unstructured: Compare the weights of all layers with each other, or prune each layer by itself?
        amount: A part (float) or a number (int) of weights, or a function of the epoch (0-based) that gives it.
        apply_pruning: Prune at all? Or a function of the epoch.
        make_pruning_permanent: Take the masks off at the end, and out of checkpoints? Zeros stay.
        use_lottery_ticket_hypothesis: Go back to the first values after pruning? Or a function of the epoch.
        resample_parameters: Go back to newly drawn values instead, where a layer can draw them.
        pruning_dim: Of structured methods: the dimension along which slices are taken out.
        pruning_norm: Of "ln_structured": the n of the norm.
        verbose: 0: say nothing; 1: how many weights are zero; 2: in each layer too.
        prune_on_train_epoch_end: Prune after training epochs, or after validations?

    Raises:
        ConfigurationError: For a contradiction, at once; when a fit begins, for a module whose parameters are sharded,
            or an average that comes after it.
        ArgumentTypeError: For an argument of the wrong kind.
    """

    PARAMETER_NAMES: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(
        self,
        pruning_fn: Callable[..., Any] | str,
        parameters_to_prune: Sequence[tuple[nn.Module, str]] = (),
        parameter_names: list[str] | None = None,
        use_global_unstructured: bool = True,
        amount: int | float | Callable[[int], int | float] = 0.5,
        apply_pruning: bool | Callable[[int], bool] = True,
        make_pruning_permanent: bool = True,
        use_lottery_ticket_hypothesis: bool | Callable[[int], bool] = True,
        resample_parameters: bool = False,
        pruning_dim: int | None = None,
        pruning_norm: int | None = None,
        verbose: int = 0,
        prune_on_train_epoch_end: bool = True,
    ) -> None:
        names = list(self.PARAMETER_NAMES) if parameter_names is None else parameter_names
        unknown = [name for name in names if name not in self.PARAMETER_NAMES]
        if unknown:
            raise ConfigurationError(
                f"ModelPruning(parameter_names={parameter_names!r}) holds {unknown[0]!r}. Of all layers, only"
                f" {' and '.join(map(repr, self.PARAMETER_NAMES))} are pruned by name. Pass one or both of them; others"
                " go into parameters_to_prune, as pairs of layer and name."
            )
        if verbose not in (0, 1, 2):
            raise ConfigurationError(
                f"ModelPruning(verbose={verbose!r}) is unknown. It says how much is told. Pass 0, 1 or 2."
            )
        if not callable(amount):
            _check_amount(amount)
        self.pruning_fn = choose_method(
            pruning_fn, is_global=use_global_unstructured, dim=pruning_dim, norm=pruning_norm
        )
        self.amount = amount
        self._given = parameters_to_prune
        self._names = names
        self._is_global = use_global_unstructured
        self._applies = apply_pruning
        self._is_permanent = make_pruning_permanent
        self._rewinds = use_lottery_ticket_hypothesis
        self._resamples = resample_parameters
        self._verbose = verbose
        self._on_train_epoch_end = prune_on_train_epoch_end
        self._trainer: Trainer | None = None
        self._hook: Any = None
        self._forget()

    def _forget(self) -> None:
        self._places: dict[str, _PARAM_TUPLE] = {}
        self._first_values: dict[str, Tensor] = {}
        self._rewind_is_due = False
        self._restored: dict[str, Any] = {}
        self._last_masks: dict[str, Any] = {}  # after they were made permanent

    # ---- yours to override

    def filter_parameters_to_prune(self, parameters_to_prune: _PARAM_LIST = ()) -> _PARAM_LIST:
        """Leave some out, or add some; here nothing is changed."""
        return parameters_to_prune

    # ---- what can be called

    @staticmethod
    def sanitize_parameters_to_prune(
        pl_module: LightningModule, parameters_to_prune: _PARAM_LIST = (), parameter_names: Sequence[str] = ()
    ) -> _PARAM_LIST:
        """The pairs to prune: those given, or those of all layers.

        Raises:
            ConfigurationError: If one is no pair of a layer and the name of its parameter, or there are none.
        """
        if not parameters_to_prune:
            layers = [layer for layer in pl_module.modules() if not isinstance(layer, _CONTAINERS)]
            names = parameter_names or ModelPruning.PARAMETER_NAMES
            found = [(layer, name) for name in names for layer in layers if _has(layer, name)]
            if not found:
                raise ConfigurationError(
                    f"ModelPruning finds nothing to prune in {class_name(pl_module)}. None of its layers has a"
                    f" parameter called {' or '.join(names)}. Pass parameters_to_prune=[(layer, 'name'), ...]."
                )
            return found
        inside = set(pl_module.modules())
        for pair in parameters_to_prune:
            is_pair = isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[0], nn.Module)
            if not (is_pair and isinstance(pair[1], str) and _has(*pair)):
                raise ConfigurationError(
                    f"ModelPruning(parameters_to_prune=...) holds {pair!r}. What is pruned is the parameter of a layer."
                    " Pass pairs of a layer and the name of its parameter, (model.head, 'weight') for example."
                )
            if pair[0] not in inside:
                raise ConfigurationError(
                    f"ModelPruning(parameters_to_prune=...) holds {type(pair[0]).__name__}, {pair[1]!r}, which is no"
                    f" layer of {class_name(pl_module)}. It would not be trained here. Pass layers of this module."
                )
        return list(parameters_to_prune)

    def apply_pruning(self, amount: int | float) -> None:
        """Prune now."""
        before = [num_zeros(*place) for place in self._places.values()] if self._verbose else []
        pairs = list(self._places.values())
        for pair in pairs:
            refresh(*pair)
        with keeping_order(*{layer: None for layer, _ in pairs}), torch.no_grad():
            apply_to_all(self.pruning_fn, pairs, amount, is_global=self._is_global)
        self._agree_on_masks()
        if self._verbose:
            self._tell(before, amount)

    def apply_lottery_ticket_hypothesis(self) -> None:
        """Let the weights that are left go back to their first values, or to newly drawn ones."""
        values = dict(self._first_values)
        if self._resamples:
            for layer, names in self._names_by_layer().items():
                if callable(getattr(layer, "reset_parameters", None)):
                    drawn = draw_anew(layer, list(names))
                    values.update({names[found]: drawn[found] for found in drawn})
            values = self._as_first_process(values)
        for name, value in values.items():
            overwrite(*self._places[name], value)

    def make_pruning_permanent(self, module: nn.Module) -> None:
        """Take all masks off that are in `module`; zeros stay."""
        for layer in module.modules():
            names = [name.removesuffix("_mask") for name, _ in layer.named_buffers(recurse=False)]
            for name in names:
                if is_masked(layer, name):
                    take_mask_off(layer, name)

    # ---- hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See what there is to prune, and keep first values."""
        self._trainer = trainer
        if stage == "fit":
            self._forget()
            self._check_order(trainer)
            if self._given or next(pl_module.parameters(), None) is not None:
                self._choose(pl_module)

        def fit_masks(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
            self._fit_masks_to_module(module, state, prefix, trains=stage == "fit")

        # A checkpoint may hold masks that the module lacks, or lack those that the module has. A function: a copy of
        # the module would copy what a method belongs to.
        self._hook = pl_module.register_load_state_dict_pre_hook(fit_masks)  # type: ignore[no-untyped-call]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resume, masks are as they were; optimizers are made by now, and count parameters as without masks."""
        if not self._places:  # the layers came in configure_model
            self._choose(pl_module)
        # The same in all processes, whichever has what is pruned: none waits for one that has failed.
        if any(parameter.is_meta for parameter in pl_module.parameters()):
            raise ConfigurationError(
                f"ModelPruning cannot prune {class_name(pl_module)}, of which {type(trainer.strategy).__name__} has"
                " parameters in other processes. What is pruned is chosen among whole parameters. Use one device or"
                " strategy='ddp'."
            )
        for name, (layer, parameter_name) in self._places.items():
            if hasattr(parameter_of(layer, parameter_name), "device_mesh"):
                raise ConfigurationError(
                    f"ModelPruning cannot prune {name!r}, which is sharded by {type(trainer.strategy).__name__}."
                    " A mask belongs to a whole parameter. Use one device or strategy='ddp'."
                )
        restored, self._restored = self._restored, {}
        self._rewind_is_due = restored.get("rewind_is_due", False)
        self._first_values.update(restored.get("first_values", {}))
        for name, saved in restored.get("masks", {}).items():
            if name not in self._places:
                raise ConfigurationError(
                    f"The checkpoint has pruned {name!r}, which this ModelPruning does not prune. Its mask would be"
                    " lost. Prune the same parameters as when it was saved."
                )
            layer, parameter_name = self._places[name]
            _put_back(layer, parameter_name, saved["mask"], saved["hidden"])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to first values, if the last pruning said so."""
        if self._rewind_is_due:
            self._rewind_is_due = False
            self.apply_lottery_ticket_hypothesis()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune, unless that is done after validations."""
        if self._on_train_epoch_end:
            self._prune(trainer.current_epoch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune, if that is done after validations."""
        if self._places and not self._on_train_epoch_end and not trainer.sanity_checking:
            self._prune(trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The masks go."""
        if self._is_permanent:
            self._last_masks = self._masks()
            self.make_pruning_permanent(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Plain weights with zeros go into the checkpoint."""
        if self._is_permanent and "state_dict" in checkpoint:
            plain_state(checkpoint["state_dict"])

    def on_save_weights(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """And into one that holds weights only."""
        self.on_save_checkpoint(trainer, pl_module, checkpoint)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checkpoints are loaded as usual again."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self._trainer = None

    def state_dict(self) -> dict[str, Any]:
        """Masks, what is behind them, and first values."""
        masks = self._masks() or self._last_masks
        if not masks and not self._first_values:
            return {}
        return {"masks": masks, "first_values": self._first_values, "rewind_is_due": self._rewind_is_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back, when the fit begins."""
        self._restored = {**self._restored, **state_dict}

    # ---- inside

    def _check_order(self, trainer: Trainer) -> None:
        """An average that is put into the module after the masks have gone would bring back what was pruned."""
        for callback in trainer.callbacks[trainer.callbacks.index(self) + 1 :]:
            if isinstance(callback, (StochasticWeightAveraging, WeightAveraging)):
                name = type(callback).__name__
                raise ConfigurationError(
                    f"Trainer(callbacks=...) has ModelPruning before {name}. The average would come into the module"
                    f" after pruning has ended, with what was pruned in it. Pass {name} first: callbacks act in the"
                    " order given."
                )

    def _choose(self, pl_module: LightningModule) -> None:
        found = self.sanitize_parameters_to_prune(pl_module, self._given, self._names)
        names = {layer: plain_name(pl_module, name) for name, layer in pl_module.named_modules()}
        pairs = self.filter_parameters_to_prune(found)
        self._places = {f"{names[layer]}.{name}".lstrip("."): (layer, name) for layer, name in pairs}
        if self._rewinds and not self._resamples:
            self._first_values = {name: parameter_of(*at).detach().clone().cpu() for name, at in self._places.items()}

    def _prune(self, epoch: int) -> None:
        applies = self._applies(epoch) if callable(self._applies) else self._applies
        amount = self.amount(epoch) if callable(self.amount) else self.amount
        _check_amount(amount)
        if not applies or not amount:
            return
        self.apply_pruning(amount)
        self._rewind_is_due = bool(self._rewinds(epoch) if callable(self._rewinds) else self._rewinds)

    def _agree_on_masks(self) -> None:
        """Methods that draw would draw others in each process."""
        if self._trainer is None or self._trainer.world_size == 1:
            return
        own = {name: mask_of(*at) for name, at in self._places.items()}
        masks = {name: mask.bool() for name, mask in own.items() if mask is not None}
        for name, mask in self._as_first_process(masks).items():
            put_mask(*self._places[name], mask)

    def _as_first_process(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._trainer is None or self._trainer.world_size == 1:
            return tensors
        there: dict[str, Tensor] = self._trainer.strategy.broadcast({name: one.cpu() for name, one in tensors.items()})
        return there

    def _names_by_layer(self) -> dict[nn.Module, dict[str, str]]:
        found: dict[nn.Module, dict[str, str]] = {}
        for name, (layer, parameter_name) in self._places.items():
            found.setdefault(layer, {})[parameter_name] = name
        return found

    def _masks(self) -> dict[str, Any]:
        """For each pruned parameter its mask, and the values under it: optimizers that look at norms see them."""
        found: dict[str, Any] = {}
        for name, (layer, parameter_name) in self._places.items():
            mask = mask_of(layer, parameter_name)
            if mask is not None:
                kept = mask.bool()
                found[name] = {"mask": kept, "hidden": parameter_of(layer, parameter_name).detach()[~kept]}
        return found

    def _fit_masks_to_module(self, module: nn.Module, state: dict[str, Any], prefix: str, *, trains: bool) -> None:
        """Before weights are loaded: masks that come without a place wait for `on_fit_start`."""
        masked = [key.removesuffix("_mask") for key in state if key.endswith("_mask")]
        for key in [key for key in masked if f"{key}_orig" in state]:
            name = key.removeprefix(prefix)
            layer, parameter_name = _find(module, name)
            if layer is None or is_masked(layer, parameter_name):
                continue
            values, mask = state.pop(f"{key}_orig"), state.pop(f"{key}_mask")
            state[key] = values * mask
            if trains:
                kept = mask.bool()
                masks = self._restored.setdefault("masks", {})
                masks[plain_name(module, name)] = {"mask": kept, "hidden": values[~kept]}
        for found, layer in module.named_modules():
            for parameter_name in [name.removesuffix("_mask") for name, _ in layer.named_buffers(recurse=False)]:
                key = prefix + (f"{found}." if found else "") + parameter_name
                if is_masked(layer, parameter_name) and key in state:
                    state[f"{key}_orig"] = state.pop(key)
                    state[f"{key}_mask"] = torch.ones_like(state[f"{key}_orig"])

    def _tell(self, before: list[tuple[int, int]], amount: int | float) -> None:
        after = [num_zeros(*place) for place in self._places.values()]
        was, now, size = sum(zeros for zeros, _ in before), sum(zeros for zeros, _ in after), sum(n for _, n in after)
        method = getattr(self.pruning_fn, "func", self.pruning_fn)
        rank_zero_info(
            f"Pruned by {getattr(method, '__name__', method)}({amount}): {_share(was, size)} -> {_share(now, size)}"
            f" of {size:,} weights are zero."
        )
        if self._verbose == 2:
            for name, (was, size), (now, _) in zip(self._places, before, after, strict=True):
                rank_zero_info(f"  {name}: {_share(was, size)} -> {_share(now, size)} of {size:,}")


def _check_amount(amount: object) -> None:
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise ArgumentTypeError(
            f"ModelPruning(amount={amount!r}) is a {type(amount).__name__}. It says how many weights are pruned each"
            " time. Pass a part (0.2), a number (100), or a function of the epoch that gives one."
        )
    if amount < 0 or (isinstance(amount, float) and amount > 1):
        raise ConfigurationError(
            f"ModelPruning(amount={amount!r}) cannot be pruned. A float is a part of the weights, an int is a number of"
            " them. Pass a float from 0 to 1, or an int that is not negative."
        )


def _has(layer: nn.Module, name: str) -> bool:
    return is_masked(layer, name) or isinstance(getattr(layer, name, None), nn.Parameter)


def _find(module: nn.Module, name: str) -> tuple[nn.Module | None, str]:
    path, _, parameter_name = name.rpartition(".")
    return dict(module.named_modules()).get(path), parameter_name


@torch.no_grad()
def _put_back(layer: nn.Module, name: str, mask: Tensor, hidden: Tensor) -> None:
    parameter = parameter_of(layer, name)
    kept = mask.to(parameter.device).bool()
    parameter[~kept] = hidden.to(parameter.device, parameter.dtype)
    put_mask(layer, name, kept)


def _share(zeros: int, size: int) -> str:
    return f"{zeros:,} ({zeros / max(size, 1):.1%})"
