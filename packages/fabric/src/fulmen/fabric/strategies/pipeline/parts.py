"""One process of a pipeline: which parts of the module are here, and how its code runs from one cut to the next.

The user's code runs in every stage, with the micro-batch that it is about. Modules of other stages give tensors
without numbers ("ghosts"): so what comes before a stage costs next to nothing, and its results can be used for nothing
but what goes into the stage. There, the tensors that have arrived take their place. At the next cut the code is left.
What follows from the batch alone (positions, masks) is computed in every stage, and not sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from fulmen.fabric.class_names import class_name
from fulmen.fabric.compiled import without_wrappers
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.strategies.pipeline.cuts import Cut, Pipeline
from fulmen.fabric.strategies.pipeline.ghosts import Ghosts
from fulmen.fabric.trees import leaves, map_tree


@dataclass(frozen=True)
class Crossing:
    """What goes over one cut.

    Attributes:
        is_sent: For each tensor in the arguments of the module that a stage begins with: does it come from before?
        shapes: Ghosts of those that are sent.
    """

    is_sent: tuple[bool, ...]
    shapes: tuple[Tensor, ...]


class ReachedCutError(BaseException):
    """The code has come to the cut where the next stage begins; not an error, and nothing that a user would catch.

    Attributes:
        tensors: What the next stage needs.
    """

    def __init__(self, tensors: tuple[Tensor, ...] = ()) -> None:
        self.tensors = tensors


@dataclass
class _Run:
    stage: int  # -1: all modules are ghosts
    arrived: tuple[Tensor, ...] = ()
    crossings: dict[int, Crossing] = field(default_factory=dict)
    passed: set[int] = field(default_factory=set)  # stages whose first module was called
    # Ghosts and what has arrived for them; the ghost is kept so that its id stays its own.
    places: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class StagedModule:
    """A module of which this process has some stages.

    Args:
        module: The user's; its parameters are in memory or on the meta device. Those of other stages lose their memory
            in `drop_others`.
        pipeline, cut: How it is cut.
        stages: Those of this process.
        device: Of this process.
    """

    def __init__(
        self, module: nn.Module, pipeline: Pipeline, cut: Cut, stages: Sequence[int], device: torch.device
    ) -> None:
        self.module, self.pipeline, self.cut, self.stages = module, pipeline, cut, tuple(stages)
        self.device = device
        self._ghosts = Ghosts(device)
        self._begins = {name: place + 1 for place, name in enumerate(pipeline.split_points)}
        self._units = {name: module.get_submodule(name) for name in cut.units}
        for name, unit in self._units.items():
            self._ghosts.add(name, unit)
        self._stand_ins = [(*_parent(module, name), _StandIn(self, name)) for name in cut.units]
        self._run: _Run | None = None
        self._elsewhere: set[str] = set()
        self._copies: set[str] = set()  # buffers that are in every stage, and saved by one
        inside = {id(part) for unit in self._units.values() for part in unit.modules()}
        for name, part in module.named_modules(remove_duplicate=False):
            if cut.stage_of[name] not in self.stages:
                # Buffers of containers are the same in every stage, as their code is.
                names = [*part._parameters] if name in cut.containers else [*part._parameters, *part._buffers]
                found = {without_wrappers(f"{name}.{one}" if name else one) for one in names}
                self._elsewhere |= found
                if id(part) not in inside and name not in cut.containers:
                    self._copies |= found
        # Parameters of containers: (container, name, stage, ghost).
        self._loose: list[tuple[nn.Module, str, int, Parameter]] = []
        for name in cut.containers:
            container = module.get_submodule(name)
            for own, value in container.named_parameters(recurse=False):
                self._loose.append((container, own, cut.stage_of[name], self._ghosts.tensor(value)))

    def __deepcopy__(self, memo: dict[int, Any]) -> StagedModule:
        return self  # it is about this process

    @property
    def num_stages(self) -> int:
        """How many stages there are, in all processes."""
        return self.pipeline.num_stages

    def holds(self, name: str) -> bool:
        """Is this parameter or buffer here?"""
        return name not in self._elsewhere

    def has(self, name: str) -> bool:
        """Has this parameter or buffer memory here? Some buffers have in every stage, and are saved by one."""
        return name not in self._elsewhere or name in self._copies

    def outside(self) -> list[nn.Module]:
        """What is in no unit, and so in every stage: containers, and modules without parameters."""
        inside = {id(part) for unit in self._units.values() for part in unit.modules()}
        return [part for part in self.module.modules() if id(part) not in inside]

    def units_of(self, stage: int) -> list[nn.Module]:
        """What the containers call in one stage."""
        return [unit for name, unit in self._units.items() if self.cut.stage_of[name] == stage]

    def loose_of(self, stage: int) -> list[tuple[nn.Module, str]]:
        """Parameters of containers, which belong to one stage: the container, and the name in it."""
        return [(container, name) for container, name, its, _ in self._loose if its == stage]

    def drop_others(self) -> None:
        """Take the memory of what other stages have."""
        made: dict[int, Tensor] = {}  # what is shared stays so
        for name, unit in self._units.items():
            for part in unit.modules() if self.cut.stage_of[name] not in self.stages else ():
                _to_meta(part._parameters, [*part._parameters], made)
                _to_meta(part._buffers, [*part._buffers], made)
        for container, name, stage, _ in self._loose:
            if stage not in self.stages:
                _to_meta(container._parameters, [name], made)

    # ---- run

    @contextmanager
    def cut_open(self) -> Iterator[None]:
        """Inside, modules are called as the stages want it: by `run` and `rehearse`."""
        for parent, key, stand_in in self._stand_ins:
            stand_in.real = parent._modules[key]
            stand_in.training = stand_in.real.training
            parent._modules[key] = stand_in
        try:
            yield
        finally:
            for parent, key, stand_in in self._stand_ins:
                parent._modules[key] = stand_in.real

    def rehearse(self, call: Callable[[], Any]) -> dict[int, Crossing]:
        """What goes over each cut, found with shapes only: for the stage that begins there, what arrives."""
        self._ghosts.look_again()
        for container, name, _, ghost in self._loose:
            value = container._parameters[name]
            ghost.requires_grad_(value is not None and value.requires_grad)
        run = _Run(stage=-1)
        before, counts = torch.get_rng_state(), self._updates_of_metrics()
        try:
            self._until_cut(run, call, {})
        finally:
            moved = not torch.equal(before, torch.get_rng_state())
            torch.set_rng_state(before)
        missing = [name for name, stage in self._begins.items() if stage not in run.passed]
        if missing:
            raise ConfigurationError(
                f"Pipeline(split_points={list(self.pipeline.split_points)!r}) names {missing[0]!r}, which was not"
                f" called in a step of {class_name(self.module)}. A stage begins when its module is called."
                " Name modules that every step calls, in their order."
            )
        if moved:
            raise ConfigurationError(
                f"A step of {class_name(self.module)} draws random numbers outside of the modules of its stages."
                " That code runs in every stage of a pipeline, and each would draw others. Draw them where batches are"
                " made, or in a module of one stage."
            )
        updated = next((name for name, count in self._updates_of_metrics().items() if count != counts[name]), None)
        if updated is not None:
            raise ConfigurationError(
                f"A step of {class_name(self.module)} updates the metric {updated!r} before its last stage begins."
                " That code runs in every stage of a pipeline, and each would count. Update it with the output of"
                " the module, or after that."
            )
        return run.crossings

    def _updates_of_metrics(self) -> dict[str, int]:
        # Those of torchmetrics, which has no public name for it.
        parts = [(name, vars(part).get("_update_count")) for name, part in self.module.named_modules()]
        return {name: count for name, count in parts if isinstance(count, int)}

    def run(
        self,
        stage: int,
        arrived: tuple[Tensor, ...],
        crossings: dict[int, Crossing],
        call: Callable[[], Any],
        loose: dict[tuple[int, str], Any],
    ) -> Any:
        """Run one stage: what goes to the next one, or of the last, what `call` gives.

        Args:
            stage: Which.
            arrived: From the one before.
            crossings: From `rehearse`.
            call: The step with its micro-batch.
            loose: Parameters of containers as they are now, by id and name.
        """
        result = self._until_cut(_Run(stage, arrived, crossings), call, loose)
        if stage == self.num_stages - 1:
            if any(self._ghosts.is_ghost(leaf) for leaf in leaves(result)):
                raise self._out_of_reach("what the step returns")
        elif not isinstance(result, ReachedCutError):
            raise ConfigurationError(
                f"A step of {class_name(self.module)} did not come to the module"
                f" {self.pipeline.split_points[stage]!r} this time, where stage {stage + 1} begins. All stages work on"
                " each micro-batch. Let the step take the same way through the module always."
            )
        return result.tensors if isinstance(result, ReachedCutError) else result

    def _until_cut(self, run: _Run, call: Callable[[], Any], loose: dict[tuple[int, str], Any]) -> Any:
        outside = self._run
        kept = [container._parameters[name] for container, name, _, _ in self._loose]
        for container, name, stage, ghost in self._loose:
            if stage != run.stage:
                container._parameters[name] = ghost
            elif (id(container), name) in loose:
                container._parameters[name] = loose[id(container), name]
        self._run = run
        try:
            return call()
        except ReachedCutError as cut:
            return cut
        except RuntimeError as error:
            # What torch says of ghosts and of parameters without memory; all else is the user's.
            if type(error).__module__.startswith("torch._subclasses") or re.search(r"\bmeta\b", str(error)):
                raise self._out_of_reach("code outside of its modules") from error
            raise
        finally:
            self._run = outside
            for (container, name, _, _), value in zip(self._loose, kept, strict=True):
                container._parameters[name] = value

    def refuse_outside(self, *_: Any) -> None:
        """A hook before the module's own forward.

        Raises:
            ConfigurationError: Outside of a step: no process has all of the module.
        """
        if self._run is None:
            raise ConfigurationError(
                f"{class_name(self.module)} was called outside of a step of its pipeline. No process has all of it."
                " Train with `strategy.forward_backward(step, module, batch)`, evaluate with `strategy.evaluate(...)`,"
                " and call the module in the step."
            )

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A container calls one of its modules."""
        self.refuse_outside()
        run = self._run
        assert run is not None
        begins = self._begins.get(name)
        if begins is not None:
            args, kwargs = self._at_cut(run, begins, args, kwargs)
        if self.cut.stage_of[name] != run.stage:
            return self._ghosts.call(name, args, kwargs)
        args, kwargs = map_tree((args, kwargs), lambda leaf: self._in_its_place(run, leaf, name))
        return self._units[name](*args, **kwargs)

    def _at_cut(self, run: _Run, begins: int, args: Any, kwargs: Any) -> tuple[Any, Any]:
        name = self.pipeline.split_points[begins - 1]
        if begins in run.passed:
            raise ConfigurationError(
                f"A step of {class_name(self.module)} called {name!r} twice, with which a stage begins. Each"
                " micro-batch goes through the stages once. Join what you call it with along the first axis, or choose"
                " other split points."
            )
        if begins - 1 not in run.passed and begins > 1:
            raise ConfigurationError(
                f"Pipeline(split_points={list(self.pipeline.split_points)!r}) is not the order in which a step of"
                f" {class_name(self.module)} calls these modules: {name!r} came too early. Stages follow each other."
                " Name them in the order of the calls."
            )
        run.passed.add(begins)
        tensors = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if run.stage < 0:
            is_sent = tuple(self._ghosts.is_ghost(one) for one in tensors)
            run.crossings[begins] = Crossing(is_sent, tuple(one for one in tensors if self._ghosts.is_ghost(one)))
            if not any(is_sent):
                raise ConfigurationError(
                    f"Pipeline(split_points={list(self.pipeline.split_points)!r}) names {name!r}, which gets nothing"
                    " that the stages before it have computed. They would do nothing. Name a module that gets their"
                    " output."
                )
            if begins == self.num_stages - 1:
                raise ReachedCutError
            return args, kwargs
        if begins > run.stage + 1 or begins < run.stage:
            return args, kwargs
        crossing = run.crossings[begins]
        if len(tensors) != len(crossing.is_sent):
            raise self._changed(name, f"{len(tensors)} tensors", f"{len(crossing.is_sent)}")
        if begins == run.stage + 1:
            going = [one for one, is_sent in zip(tensors, crossing.is_sent, strict=True) if is_sent]
            pairs = zip(going, crossing.shapes, strict=True)
            raise ReachedCutError(tuple(self._to_send(run, name, tensor, like) for tensor, like in pairs))
        return self._with_arrived(run, crossing, args, kwargs)

    def _to_send(self, run: _Run, name: str, tensor: Tensor, like: Tensor) -> Tensor:
        tensor = self._in_its_place(run, tensor, name)
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            raise self._changed(
                name, f"a tensor of {list(tensor.shape)}, {tensor.dtype}", f"{list(like.shape)}, {like.dtype}"
            )
        return tensor.contiguous()

    def _with_arrived(self, run: _Run, crossing: Crossing, args: Any, kwargs: Any) -> tuple[Any, Any]:
        sent, arriving = iter(crossing.is_sent), iter(run.arrived)

        def replace(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not next(sent):
                return leaf
            tensor = next(arriving)
            run.places[id(leaf)] = leaf, tensor
            return tensor

        args, kwargs = map_tree((args, kwargs), replace)
        return args, kwargs

    def _in_its_place(self, run: _Run, leaf: Any, name: str) -> Any:
        if not self._ghosts.is_ghost(leaf):
            return leaf
        if id(leaf) not in run.places:
            raise self._out_of_reach(repr(name))
        return run.places[id(leaf)][1]

    # ---- errors

    def _changed(self, name: str, now: str, before: str) -> ConfigurationError:
        return ConfigurationError(
            f"{name!r} of {class_name(self.module)}, with which a stage begins, got {now}, and {before} was"
            " expected. What one stage sends, the next one waits for. Let the step call it in the same way always, and"
            " cut where tensors are not split over the tensor axis."
        )

    def _out_of_reach(self, where: str) -> ConfigurationError:
        return ConfigurationError(
            f"A step of {class_name(self.module)} uses in {where} what another stage of the pipeline has: a"
            " parameter of it, or a tensor that does not go through the module with which this stage begins."
            f" Pass it to {', '.join(map(repr, self.pipeline.split_points))} as an argument, use parameters only in the"
            " stage that has them, or choose other split points."
        )

    def ask_for_parts(self, name: str, asked: str) -> ConfigurationError:
        """What is said if `asked` is taken of a module inside of a step."""
        return ConfigurationError(
            f"A step of {class_name(self.module)} asked {name!r} for {asked!r}, which is not here: it is in stage"
            f" {self.cut.stage_of[name]}. Each stage of a pipeline has its own modules only. Call modules, and use"
            " their parameters inside of them."
        )


class _StandIn(nn.Module):
    """In the place of a module, while a step runs."""

    real: Any = None

    def __init__(self, staged: StagedModule, name: str) -> None:
        super().__init__()
        self.__dict__.update(_staged=staged, _name=name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gives, or a ghost of it."""
        return self._staged.call(self._name, args, kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        # The module itself must not become a part of this.
        self.__dict__[name] = value

    def __getattr__(self, name: str) -> Any:
        staged, of = self.__dict__["_staged"], self.__dict__["_name"]
        run = staged._run
        if run is None or staged.cut.stage_of[of] != run.stage:
            raise staged.ask_for_parts(of, name)
        return getattr(self.__dict__["real"], name)

    @property
    def _parameters(self) -> Any:
        """Whoever adds up parameters in a step would miss those of other stages."""
        raise self.__dict__["_staged"].ask_for_parts(self.__dict__["_name"], "parameters()")

    @_parameters.setter
    def _parameters(self, value: Any) -> None:
        """There are none."""


def users_part(value: Any) -> Any:
    """The module itself, of one that stands in its place while a step runs; anything else as it is."""
    return value.__dict__["real"] if isinstance(value, _StandIn) else value


def _parent(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    above, _, key = name.rpartition(".")
    return module.get_submodule(above), key


def _to_meta(own: dict[str, Any], names: Sequence[str], made: dict[int, Tensor]) -> None:
    for name in names:
        value = own[name]
        if value is None:
            continue
        if id(value) not in made:
            empty = torch.empty_like(value, device="meta")
            made[id(value)] = Parameter(empty, value.requires_grad) if isinstance(value, Parameter) else empty
            made[id(value)].is_in_another_stage = True  # type: ignore[attr-defined]  # for those that make optimizers
        own[name] = made[id(value)]
