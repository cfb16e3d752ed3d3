import copy
import pickle
import subprocess
import sys
import warnings
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.core.needs import LRSchedulerConfig
from fulmen.trainer.core.optimizer import LightningOptimizer
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.signature import is_overridden


class Sink:
    def __init__(self):
        self.calls = []

    def log(self, name, value, **options):
        self.calls.append((name, value, options))


class Strategy:
    def __init__(self, *optimizers):
        self.optimizers = list(optimizers)
        self.lightning_optimizers = [LightningOptimizer(optimizer) for optimizer in optimizers]
        self.calls = []

    def backward(self, loss, optimizer, *args, **kwargs):
        self.calls.append(("backward", loss, optimizer))

    def clip_gradients(self, optimizer, clip_val, algorithm):
        self.calls.append(("clip", optimizer, clip_val, algorithm))

    def all_gather(self, tensor, group=None, sync_grads=False):
        return torch.stack([tensor, tensor])


def attached(module, *optimizers, **more):
    trainer = SimpleNamespace(
        strategy=Strategy(*optimizers),
        optimizers=list(optimizers),
        lr_scheduler_configs=[],
        gradient_clip_val=None,
        gradient_clip_algorithm=None,
        progress_bar_callback=None,
        is_global_zero=True,
        current_epoch=3,
        global_step=40,
        global_rank=1,
        local_rank=2,
        logger="logger",
        loggers=["logger"],
    )
    trainer.__dict__.update(more)
    module.attach(trainer, Sink())
    return trainer


def test_without_a_run_it_is_a_torch_module(capsys, tmp_path):
    model = BoringModel()
    assert model(torch.ones(1, 32)).shape == (1, 2)
    model.print("hello")
    assert capsys.readouterr().out == "hello\n"
    torch.save(model.state_dict(), tmp_path / "w.pt")
    BoringModel().load_state_dict(torch.load(tmp_path / "w.pt"))
    assert (model.current_epoch, model.global_step, model.global_rank, model.local_rank) == (0, 0, 0, 0)
    assert (model.logger, model.loggers, model.device_mesh, model.fabric) == (None, [], None, None)
    assert model.automatic_optimization
    assert model.strict_loading
    with pytest.raises(RuntimeError, match="in no run"):
        model.trainer  # noqa: B018


def test_logging_without_a_run_warns_once():
    class Unheard(LightningModule):
        pass

    with pytest.warns(UserWarning, match=r"Unheard\.log was called while the module is in no run"):
        Unheard().log("a", 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Unheard().log_dict({"a": 1.0})


def test_default_steps_warn_and_give_nothing():
    class Unfinished(LightningModule):
        pass

    with pytest.warns(UserWarning, match="Unfinished has no training_step"):
        assert Unfinished().training_step(None, 0) is None
    with pytest.warns(UserWarning, match="Unfinished has no configure_optimizers"):
        assert Unfinished().configure_optimizers() is None
    assert BoringModel().predict_step(torch.ones(1, 32), 0).shape == (1, 2)
    assert LightningModule().configure_callbacks() == []
    with pytest.raises(NotImplementedError):
        LightningModule()(1)


def test_log_hands_everything_to_the_sink():
    module = LightningModule()
    attached(module)
    module.log("a", 1.0, True, on_epoch=True, batch_size=4)
    module.log_dict({"b": 2.0, "c": 3.0}, sync_dist=True)
    defaults = {
        "prog_bar": False,
        "logger": None,
        "on_step": None,
        "on_epoch": None,
        "reduce_fx": "mean",
        "enable_graph": False,
        "sync_dist": False,
        "sync_dist_group": None,
        "add_dataloader_idx": True,
        "batch_size": None,
        "metric_attribute": None,
        "rank_zero_only": False,
    }
    assert module._sink.calls == [
        ("a", 1.0, defaults | {"prog_bar": True, "on_epoch": True, "batch_size": 4}),
        ("b", 2.0, defaults | {"sync_dist": True}),
        ("c", 3.0, defaults | {"sync_dist": True}),
    ]


def test_collections_of_torchmetrics_are_logged_by_member():
    torchmetrics = pytest.importorskip("torchmetrics")
    module = LightningModule()
    module.metrics = torchmetrics.MetricCollection({"x": torchmetrics.MeanMetric()}, prefix="p_")
    attached(module)
    module.log_dict(module.metrics)
    [(name, value, _)] = module._sink.calls
    assert name == "p_x"
    assert value is module.metrics["x"]


def test_attaching_reaches_modules_inside_and_detaching_ends_it():
    outer = LightningModule()
    outer.inner = torch.nn.Sequential(LightningModule())
    trainer = attached(outer)
    inner = outer.inner[0]
    assert inner.trainer is trainer
    inner.log("a", 1)
    assert len(outer._sink.calls) == 1
    assert (inner.current_epoch, inner.global_step, inner.global_rank, inner.local_rank) == (3, 40, 1, 2)
    assert (inner.logger, inner.loggers) == ("logger", ["logger"])
    outer.detach()
    assert inner._trainer is None
    assert inner._sink is None


def test_copies_are_in_no_run():
    module = BoringModel()
    attached(module)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other._trainer is None
        assert other._sink is None
        assert torch.equal(other.layer.weight, module.layer.weight)


moves = st.lists(st.sampled_from(["double", "float", "half", "bfloat16", "meta", "cpu"]), max_size=5)


@settings(deadline=None)
@given(moves)
def test_device_and_dtype_follow_every_move(steps):
    for module in (BoringModel(), LightningModule()):
        device, dtype = "cpu", torch.float32
        for step in steps:
            if step == "meta":
                module.to("meta")
                device = "meta"
            elif step == "cpu":
                module.to_empty(device="cpu")
                device = "cpu"
            else:
                getattr(module, step)()
                dtype = {"double": torch.float64, "float": torch.float32, "half": torch.float16}.get(
                    step, torch.bfloat16
                )
        assert (module.device.type, module.dtype) == (device, dtype)
        assert not module.on_gpu
        assert all((param.device.type, param.dtype) == (device, dtype) for param in module.parameters())


def test_a_module_inside_knows_its_device():
    outer = torch.nn.Sequential(BoringModel())
    outer.to("meta", torch.float64)
    assert (outer[0].device.type, outer[0].dtype) == ("meta", torch.float64)
    with pytest.raises(TypeError, match=r"dtype = torch\.float16 cannot be set"):
        outer[0].dtype = torch.float16


def test_choices_are_kept():
    module = LightningModule()
    module.automatic_optimization = False
    module.strict_loading = False
    module.example_input_array = torch.ones(2)
    other = copy.deepcopy(module)
    assert not other.automatic_optimization
    assert not other.strict_loading
    assert torch.equal(other.example_input_array, torch.ones(2))
    assert other.state_dict() == {}


def test_optimizers_and_schedulers():
    module = BoringModel()
    one = torch.optim.SGD(module.parameters(), lr=0.1)
    two = torch.optim.Adam(module.parameters())
    trainer = attached(module, one)
    assert module.optimizers().optimizer is one
    assert module.optimizers(use_pl_optimizer=False) is one
    assert module.lr_schedulers() is None
    scheduler = torch.optim.lr_scheduler.StepLR(one, 1)
    trainer.lr_scheduler_configs = [LRSchedulerConfig(scheduler)]
    assert module.lr_schedulers() is scheduler
    trainer.lr_scheduler_configs *= 2
    assert module.lr_schedulers() == [scheduler, scheduler]
    attached(module, one, two)
    assert [found.optimizer for found in module.optimizers()] == [one, two]
    assert module.optimizers(use_pl_optimizer=False) == [one, two]


def test_schedulers_step_with_and_without_metric():
    module = BoringModel()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step()
    module.lr_scheduler_step(scheduler, None)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    for metric in (1.0, 2.0):
        module.lr_scheduler_step(plateau, metric)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_manual_backward_is_for_manual_optimization():
    module = BoringModel()
    trainer = attached(module)
    loss = torch.ones((), requires_grad=True)
    with pytest.raises(MisconfigurationException, match="manual_backward was called in BoringModel"):
        module.manual_backward(loss)
    module.automatic_optimization = False
    module.manual_backward(loss)
    assert trainer.strategy.calls == [("backward", loss, None)]
    module.backward(loss)
    assert loss.grad == 1


@pytest.mark.parametrize(
    ("of_trainer", "asked", "expected"),
    [
        ((None, None), (None, None), None),
        ((None, None), (1, None), (1, "norm")),
        ((0.5, "value"), (None, None), (0.5, "value")),
        ((0.5, None), (0.5, "NORM"), (0.5, "norm")),
        ((0.5, None), (1, None), "gradient_clip_val=1"),
        ((None, "norm"), (1, "value"), "gradient_clip_algorithm='value'"),
        ((None, None), (1, "foo"), "'foo'"),
        ((None, None), ("x", None), "got a str"),
    ],
)
def test_clipping(of_trainer, asked, expected):
    module = BoringModel()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    trainer = attached(module, gradient_clip_val=of_trainer[0], gradient_clip_algorithm=of_trainer[1])
    if isinstance(expected, str):
        with pytest.raises(MisconfigurationException, match=expected):
            module.clip_gradients(optimizer, *asked)
    else:
        module.configure_gradient_clipping(optimizer, *asked)
        assert trainer.strategy.calls == ([("clip", optimizer, *expected)] if expected else [])


@settings(deadline=None)
@given(st.data())
def test_toggling_gives_everything_back(data):
    module = LightningModule()
    params = [torch.nn.Parameter(torch.ones(1), requires_grad=data.draw(st.booleans())) for _ in range(5)]
    some = st.lists(st.sampled_from(params), min_size=1, max_size=5, unique_by=id)
    optimizers = [torch.optim.SGD(data.draw(some), lr=0.1) for _ in range(2)]
    attached(module, *optimizers)
    before = [param.requires_grad for param in params]
    for index in data.draw(st.lists(st.integers(0, 1), max_size=3)):  # toggled without untoggling between
        module.toggle_optimizer(optimizers[index])
    for index, optimizer in enumerate(optimizers):
        with module.toggled_optimizer(LightningOptimizer(optimizer)):
            own = optimizer.param_groups[0]["params"]
            foreign = optimizers[1 - index].param_groups[0]["params"]
            for param, requires_grad in zip(params, before, strict=True):
                if any(param is mine for mine in own):
                    assert param.requires_grad is requires_grad
                elif any(param is other for other in foreign):
                    assert not param.requires_grad
        assert [param.requires_grad for param in params] == before


def test_freezing():
    model = BoringModel()
    assert model.freeze() is model
    assert not model.training
    assert not any(param.requires_grad for param in model.parameters())
    assert model.unfreeze().training
    assert all(param.requires_grad for param in model.parameters())


def test_gathering_collections():
    module = LightningModule()
    attached(module)
    found = module.all_gather({"a": torch.ones(2), "b": [1.5]})
    assert found["a"].shape == (2, 2)
    assert found["b"][0].tolist() == [1.5, 1.5]


def test_printing_in_a_run(capsys):
    module = LightningModule()
    bar = SimpleNamespace(is_enabled=True, lines=[], print=lambda *args, **kwargs: bar.lines.append(args))
    attached(module, progress_bar_callback=bar)
    module.print("above", 1)
    attached(module, is_global_zero=False)
    module.print("not here")
    attached(module)
    module.print("plain")
    assert bar.lines == [("above", 1)]
    assert capsys.readouterr().out == "plain\n"


class Fabric:
    logger, loggers, global_rank, local_rank = "f", ["f"], 5, 6

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, *args, kwargs))


def test_with_fabric_in_place_of_a_trainer():
    module = BoringModel()
    fabric = Fabric()
    module.fabric = fabric
    loss = torch.ones((), requires_grad=True)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.log("a", loss)
    module.log("b", 1, logger=False)
    module.manual_backward(loss)
    module.backward(loss)
    module.print("x")
    module.clip_gradients(optimizer, 2.0)
    module.clip_gradients(optimizer, 2.0, "value")
    assert [call[0] for call in fabric.calls] == [
        "log_dict",
        "backward",
        "backward",
        "print",
        "clip_gradients",
        "clip_gradients",
    ]
    assert fabric.calls[0][1]["a"].requires_grad is False
    assert [call[-1] for call in fabric.calls[-2:]] == [{"max_norm": 2.0}, {"clip_val": 2.0}]
    assert (module.logger, module.loggers, module.global_rank, module.local_rank) == ("f", ["f"], 5, 6)
    assert module.optimizers() == []


def test_what_is_overridden():
    assert is_overridden("training_step", BoringModel())
    assert not is_overridden("backward", BoringModel())
    assert not is_overridden("setup", BoringModel())


def test_importing_it_loads_nothing_slow():
    slow = ["torchmetrics", "tqdm", "rich", "fsspec", "yaml", "torch.utils.tensorboard", "matplotlib"]
    code = (
        "import sys, torch, torch.utils.data, torch.distributed; before = set(sys.modules)\n"
        "import fulmen.trainer.core.module, fulmen.trainer.core.datamodule, fulmen.trainer.core.callback\n"
        f"assert not (set({slow!r}) & (set(sys.modules) - before)), set({slow!r}) & (set(sys.modules) - before)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
