"""Train a part of the module first, and unfreeze the rest later."""

from collections.abc import Callable, Generator, Iterable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from fulmen.fabric.class_names import class_name
from fulmen.fabric.compiled import plain_name, plain_parameters
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, MisconfigurationException
from fulmen.fabric.rank_zero import rank_zero_info, rank_zero_warn
from fulmen.trainer._typing import Trainer
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule

Modules = nn.Module | Iterable[nn.Module | Iterable[Any]]


class NoBackboneError(MisconfigurationException, AttributeError):
    """The module has no attribute `backbone` that is a module."""


class NotDefinedError(MisconfigurationException, NotImplementedError):
    """A subclass lacks a method that only it can define."""


def multiplicative(epoch: int) -> float:
    """The learning rate doubles in every epoch."""
    return 2.0


class BaseFinetuning(Callback):
    """Freezes before training and unfreezes by epoch, as a subclass says; both are as before after a resume.

    Define `freeze_before_training(pl_module)` and `finetune_function(pl_module, epoch, optimizer)`. The optimizer that
    the module makes should get only parameters with `requires_grad`; the others are added when they are unfrozen.

    Raises:
        NotDefinedError: If a method that a subclass must define is called, and is not there.
        ConfigurationError: When a fit begins, if parameters are split over processes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._module: LightningModule | None = None
        self._optimizers: list[Optimizer] = []
        self._restored: dict[str, Any] | None = None

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze what is not to be trained at first, with `self.freeze(...)`."""
        raise _not_defined(self, "freeze_before_training(self, pl_module)")

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Called before each epoch (0-based) for each optimizer: unfreeze with `self.unfreeze_and_add_param_group`."""
        raise _not_defined(self, "finetune_function(self, pl_module, epoch, optimizer)")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze, before the optimizers are made."""
        self._module, self._optimizers, self._restored = None, [], None
        if stage != "fit":
            return
        strategy = trainer.strategy
        if strategy.shards_parameters or strategy.handles_gradient_accumulation:
            # They lay out parameters, and the state of optimizers over them, once and for all.
            raise ConfigurationError(
                f"{type(self).__name__} cannot be used with {type(strategy).__name__}. Which parameters are trained is"
                " settled there when the module is split, and what is unfrozen later would stay as it is. Use"
                " strategy='ddp', or fit twice, the second time with all parameters unfrozen in the module's __init__."
            )
        self.freeze_before_training(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resume, freeze and group parameters as they were; the states of optimizers come after this."""
        self._module, self._optimizers = pl_module, list(trainer.optimizers)
        restored, self._restored = self._restored, None
        if restored is None:
            return
        before = _trained(pl_module)
        parameters: dict[str, nn.Parameter] = plain_parameters(pl_module)
        for index, groups in restored["internal_optimizer_metadata"].items():
            self._regroup(self._optimizers[int(index)], groups, parameters)
        if "frozen" in restored:
            frozen, still = set(restored["frozen"]), set(restored["still_batch_norms"])
            for name, parameter in parameters.items():
                parameter.requires_grad_(name not in frozen)
            for name, layer in pl_module.named_modules():
                if isinstance(layer, _BatchNorm):
                    layer.track_running_stats = plain_name(pl_module, name) not in still
        if _trained(pl_module) != before:
            trainer.strategy.on_trained_parameters_change()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let `finetune_function` decide for this epoch."""
        before = _trained(pl_module)
        for optimizer in trainer.optimizers:
            self.finetune_function(pl_module, trainer.current_epoch, optimizer)
        if _trained(pl_module) != before:
            trainer.strategy.on_trained_parameters_change()
            trainer.fit_loop.epoch_loop.setup_steps()  # they may go through another wrapper now

    def state_dict(self) -> dict[str, Any]:
        """The parameter groups by names, and what is frozen."""
        if self._module is None:
            return {}
        module, layers = self._module, self._module.named_modules()
        parameters = plain_parameters(module)
        names = {id(parameter): name for name, parameter in parameters.items()}
        return {
            "internal_optimizer_metadata": {
                index: [_named(group, names) for group in optimizer.param_groups]
                for index, optimizer in enumerate(self._optimizers)
            },
            "frozen": [name for name, parameter in parameters.items() if not parameter.requires_grad],
            "still_batch_norms": [
                plain_name(module, name)
                for name, layer in layers
                if isinstance(layer, _BatchNorm) and not layer.track_running_stats
            ],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back, when the fit begins."""
        self._restored = state_dict

    @staticmethod
    def flatten_modules(modules: Modules) -> list[nn.Module]:
        """All modules inside that have parameters of their own, or no modules in them."""
        if not isinstance(modules, nn.Module):
            return [layer for one in modules for layer in BaseFinetuning.flatten_modules(one)]
        return [
            layer
            for layer in modules.modules()
            if next(layer.children(), None) is None or next(layer.parameters(recurse=False), None) is not None
        ]

    @staticmethod
    def filter_params(
        modules: Modules, train_bn: bool = True, requires_grad: bool = True
    ) -> Generator[nn.Parameter, None, None]:
        """The parameters inside with this `requires_grad`; those of batch norms only with `train_bn`."""
        for layer in BaseFinetuning.flatten_modules(modules):
            if train_bn or not isinstance(layer, _BatchNorm):
                for parameter in layer.parameters(recurse=False):
                    if parameter.requires_grad == requires_grad:
                        yield parameter

    @staticmethod
    def make_trainable(modules: Modules) -> None:
        """Unfreeze all parameters inside; batch norms learn their running means again."""
        for layer in BaseFinetuning.flatten_modules(modules):
            _switch(layer, trains=True)

    @staticmethod
    def freeze_module(module: nn.Module) -> None:
        """Freeze the parameters of this one module, without those inside; a batch norm keeps its running means."""
        _switch(module, trains=False)

    @staticmethod
    def freeze(modules: Modules, train_bn: bool = True) -> None:
        """Freeze all parameters inside; with `train_bn` not those of batch norms."""
        for layer in BaseFinetuning.flatten_modules(modules):
            _switch(layer, trains=train_bn and isinstance(layer, _BatchNorm))

    @staticmethod
    def filter_on_optimizer(optimizer: Optimizer, params: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Those that the optimizer does not have yet; it warns of the others."""
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        given = list({id(parameter): parameter for parameter in params}.values())  # a shared one once
        new = [parameter for parameter in given if id(parameter) not in known]
        if len(new) < len(given):
            rank_zero_warn(
                f"{len(given) - len(new)} parameters that were unfrozen are in {type(optimizer).__name__} already. They"
                " keep their group, and its learning rate. Give the optimizer only what has requires_grad: "
                "filter(lambda parameter: parameter.requires_grad, self.parameters())."
            )
        return new

    @staticmethod
    def unfreeze_and_add_param_group(
        modules: Modules,
        optimizer: Optimizer,
        lr: float | None = None,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
    ) -> None:
        """Unfreeze all parameters inside, and let the optimizer step them in a group of their own.

        Args:
            modules: What to unfreeze.
            optimizer: Gets the new group.
            lr: Learning rate of the group; None: that of the optimizer's first group divided by `initial_denom_lr`.
            initial_denom_lr: See `lr`.
            train_bn: Unfreeze batch norms too.
        """
        for layer in BaseFinetuning.flatten_modules(modules):
            if train_bn or not isinstance(layer, _BatchNorm):
                _switch(layer, trains=True)
        rate = optimizer.param_groups[0]["lr"] / initial_denom_lr if lr is None else lr
        found = BaseFinetuning.filter_params(modules, train_bn=train_bn, requires_grad=True)
        if new := BaseFinetuning.filter_on_optimizer(optimizer, found):
            optimizer.add_param_group({"params": new, "lr": rate})

    @staticmethod
    def _regroup(optimizer: Optimizer, groups: list[dict[str, Any]], parameters: dict[str, nn.Parameter]) -> None:
        names = {id(parameter): name for name, parameter in parameters.items()}
        present = [_named(group, names)["params"] for group in optimizer.param_groups]
        if present == [group["params"] for group in groups]:
            return
        optimizer.param_groups.clear()
        for group in groups:
            optimizer.add_param_group({**group, "params": [parameters[name] for name in group["params"]]})


class BackboneFinetuning(BaseFinetuning):
    """Train with `pl_module.backbone` frozen, and from an epoch on with it, at a learning rate of its own.

    Args:
        unfreeze_backbone_at_epoch: The epoch (0-based) from which on the backbone is trained.
        lambda_func: From the next epoch to the factor by which the backbone's learning rate grows.
        backbone_initial_ratio_lr: The backbone's first learning rate, as a share of that of the first group.
        backbone_initial_lr: The backbone's first learning rate itself; None: by the share.
        should_align: Does the backbone's learning rate stop where it reaches that of the first group?
        initial_denom_lr: Divides the learning rate of a group that is added without one.
        train_bn: Train batch norms of the backbone, also while it is frozen; False: never.
        verbose: Say the learning rates of every epoch.
        rounding: Digits in what `verbose` says.

    Raises:
        ArgumentTypeError, ConfigurationError: If an argument has the wrong type or is out of range.
        NoBackboneError: When a fit begins, if the module has no backbone.
    """

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        lambda_func: Callable[[int], float] = multiplicative,
        backbone_initial_ratio_lr: float = 0.1,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
        verbose: bool = False,
        rounding: int = 12,
    ) -> None:
        super().__init__()
        if type(unfreeze_backbone_at_epoch) is not int or unfreeze_backbone_at_epoch < 0:
            raise ConfigurationError(
                f"BackboneFinetuning(unfreeze_backbone_at_epoch={unfreeze_backbone_at_epoch!r}) is no epoch."
                " It says from which one on the backbone is trained. Pass an int of at least 0."
            )
        if not callable(lambda_func):
            raise ArgumentTypeError(
                f"BackboneFinetuning(lambda_func={lambda_func!r}) cannot be called. It gives the factor by which the"
                " learning rate grows. Pass a function of the epoch."
            )
        rates = {
            "backbone_initial_ratio_lr": backbone_initial_ratio_lr,
            "backbone_initial_lr": 0.0 if backbone_initial_lr is None else backbone_initial_lr,
            "initial_denom_lr": initial_denom_lr,
        }
        for name, value in rates.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise ConfigurationError(
                    f"BackboneFinetuning({name}={value!r}) is no learning rate or factor of one."
                    " Learning rates are not negative. Pass a float of at least 0."
                )
        if initial_denom_lr == 0:
            raise ConfigurationError(
                f"BackboneFinetuning(initial_denom_lr={initial_denom_lr!r}) would divide by zero. Learning rates of"
                " groups that come without one are divided by it. Pass a float above 0."
            )
        self.unfreeze_backbone_at_epoch = unfreeze_backbone_at_epoch
        self.lambda_func = lambda_func
        self.backbone_initial_ratio_lr = backbone_initial_ratio_lr
        self.backbone_initial_lr = backbone_initial_lr
        self.should_align = should_align
        self.initial_denom_lr = initial_denom_lr
        self.train_bn = train_bn
        self.verbose = verbose
        self.rounding = rounding
        self.previous_backbone_lr: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze the backbone, before the optimizers are made."""
        if stage == "fit":
            self.previous_backbone_lr = None
        super().setup(trainer, pl_module, stage)

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freeze the backbone."""
        backbone = getattr(pl_module, "backbone", None)
        if not isinstance(backbone, nn.Module):
            raise NoBackboneError(
                f"BackboneFinetuning needs {class_name(pl_module)}.backbone, and there is no module of that name."
                " It is what is frozen first and trained later."
                " Set self.backbone in __init__, or subclass BaseFinetuning for another layout."
            )
        self.freeze(backbone, train_bn=self.train_bn)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Unfreeze the backbone in its epoch; after that, let its learning rate grow."""
        if epoch < self.unfreeze_backbone_at_epoch:
            return
        rate: float = optimizer.param_groups[0]["lr"]
        if self.previous_backbone_lr is None:
            initial = self.backbone_initial_lr
            backbone_rate = rate * self.backbone_initial_ratio_lr if initial is None else initial
            self.unfreeze_and_add_param_group(
                pl_module.backbone,
                optimizer,
                backbone_rate,
                train_bn=self.train_bn,
                initial_denom_lr=self.initial_denom_lr,
            )
        else:
            backbone_rate = self.lambda_func(epoch + 1) * self.previous_backbone_lr
            if self.should_align:
                backbone_rate = min(backbone_rate, rate)
            optimizer.param_groups[-1]["lr"] = backbone_rate
        self.previous_backbone_lr = backbone_rate
        if self.verbose:
            rank_zero_info(
                f"Epoch {epoch}: learning rate {round(rate, self.rounding)},"
                f" of the backbone {round(backbone_rate, self.rounding)}"
            )

    def state_dict(self) -> dict[str, Any]:
        """That of `BaseFinetuning`, and the backbone's learning rate."""
        return {**super().state_dict(), "previous_backbone_lr": self.previous_backbone_lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.previous_backbone_lr = state_dict["previous_backbone_lr"]
        if "internal_optimizer_metadata" in state_dict:
            super().load_state_dict(state_dict)


def _named(group: dict[str, Any], names: dict[int, str]) -> dict[str, Any]:
    """A parameter group with names in place of parameters."""
    return {**group, "params": [names[id(parameter)] for parameter in group["params"] if id(parameter) in names]}


def _trained(module: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in module.parameters()]


def _switch(layer: nn.Module, *, trains: bool) -> None:
    if isinstance(layer, _BatchNorm):
        layer.track_running_stats = trains
    for parameter in layer.parameters(recurse=False):
        parameter.requires_grad_(trains)


def _not_defined(callback: BaseFinetuning, method: str) -> NotDefinedError:
    return NotDefinedError(
        f"{type(callback).__name__} does not define {method}. What is frozen, and when it is unfrozen, only a subclass"
        " of BaseFinetuning knows. Define it, or use BackboneFinetuning."
    )
