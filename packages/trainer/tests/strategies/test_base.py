import pytest
import torch
from torch import nn

from fulmen.fabric.precision.base import Precision
from fulmen.fabric.precision.mixed import MixedPrecision
from fulmen.fabric.strategies.single_device import SingleDeviceStrategy as FabricSingleDeviceStrategy
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.strategies.base import Strategy
from fulmen.trainer.strategies.single_device import SingleDeviceStrategy


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch, batch_idx=0):
        return self.layer(batch).sum()

    validation_step = test_step = predict_step = training_step


def bound(strategy=None, *, training=True, model=None):
    strategy = strategy or SingleDeviceStrategy()
    strategy.connect(model or Model())
    strategy.setup_environment()
    strategy.setup_model(training=training)
    return strategy


def test_without_anything_around_it_a_step_is_the_modules_method():
    strategy = bound()
    for name in ("training_step", "validation_step", "test_step", "predict_step"):
        assert strategy.step_function(name) == getattr(strategy.lightning_module, name)
    assert strategy.backward_is_plain
    assert strategy.optimizer_step_is_plain
    batch = torch.rand(2, 4)
    assert torch.equal(strategy.training_step(batch), strategy.step_function("training_step")(batch))


def test_a_step_runs_in_the_context_of_the_precision():
    strategy = bound(SingleDeviceStrategy(precision_plugin=MixedPrecision("bf16-mixed", "cpu")))
    seen = []
    strategy.lightning_module.training_step = lambda batch: seen.append(torch.is_autocast_enabled("cpu"))
    strategy.step_function("training_step")(None)
    assert seen == [True]
    assert not strategy.backward_is_plain


def test_a_step_of_the_users_own_strategy_is_taken():
    class Own(SingleDeviceStrategy):
        def training_step(self, *args):
            return "own", super().training_step(*args)

    strategy = bound(Own())
    assert strategy.step_function("training_step")(torch.zeros(1, 4))[0] == "own"
    assert strategy.step_function("test_step") == strategy.lightning_module.test_step


def test_backward_goes_through_the_module_and_its_strategy():
    heard = []

    class Listening(Model):
        def backward(self, loss, *args, **kwargs):
            heard.append("module")
            loss.backward(*args, **kwargs)

    class Own(SingleDeviceStrategy):
        def pre_backward(self, closure_loss):
            heard.append("before")

        def post_backward(self, closure_loss):
            heard.append("after")

    strategy = bound(Own(), model=Listening())
    assert not strategy.backward_is_plain
    loss = strategy.training_step(torch.ones(1, 4))
    assert strategy.backward(loss, None, retain_graph=True) is loss
    assert heard == ["before", "module", "after"]
    assert strategy.lightning_module.layer.weight.grad.tolist() == [[1.0] * 4]


@pytest.mark.parametrize("overrides", [False, True])
def test_a_scaled_loss_gives_scaled_gradients_and_a_true_step(overrides):
    class Own(Model):
        def backward(self, loss, *args, **kwargs):
            loss.backward(*args, **kwargs)

    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    strategy = bound(
        SingleDeviceStrategy(precision_plugin=MixedPrecision("16-mixed", "cpu", scaler)),
        model=Own() if overrides else Model(),
    )
    weight = strategy.lightning_module.layer.weight
    before = weight.detach().clone()
    optimizer = torch.optim.SGD(strategy.lightning_module.parameters(), lr=0.5)
    strategy.take_optimizers([optimizer], [])
    strategy.backward(strategy.lightning_module.layer(torch.ones(1, 4)).sum(), optimizer)
    assert weight.grad.tolist() == [[8.0] * 4]
    strategy.clip_gradients(optimizer, 0.5, "value")
    assert weight.grad.tolist() == [[0.5] * 4]
    strategy.optimizer_step(optimizer)
    assert torch.allclose(weight, before - 0.25)


def test_clipping_is_by_this_optimizers_parameters():
    strategy = bound()
    layer = strategy.lightning_module.layer
    optimizer = torch.optim.SGD([layer.weight], lr=1.0)
    layer.weight.grad = torch.full((1, 4), 3.0)
    layer.bias.grad = torch.tensor([100.0])
    strategy.clip_gradients(optimizer, 2.0, "norm")
    assert layer.weight.grad.norm().item() == pytest.approx(2.0, rel=1e-4)
    strategy.clip_gradients(optimizer, 0.1, "value")
    assert layer.weight.grad.abs().max().item() == pytest.approx(0.1)
    assert layer.bias.grad.item() == 100.0
    layer.weight.grad.fill_(float("nan"))
    strategy.clip_gradients(optimizer, 1.0, "norm")
    with pytest.raises(ConfigurationError, match="gradient_clip_algorithm='foo'"):
        strategy.clip_gradients(optimizer, 1.0, "foo")


def test_a_closure_reaches_the_optimizer():
    strategy = bound()
    optimizer = torch.optim.LBFGS(strategy.lightning_module.parameters(), max_iter=3)
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = strategy.training_step(torch.ones(1, 4)) ** 2
        loss.backward()
        return loss

    strategy.optimizer_step(optimizer, closure)
    assert len(calls) > 1


def test_state_goes_to_a_checkpoint_and_back(tmp_path):
    strategy = bound()
    optimizer = torch.optim.Adam(strategy.lightning_module.parameters())
    strategy.take_optimizers([optimizer], [])
    strategy.backward(strategy.training_step(torch.ones(1, 4)), optimizer)
    strategy.optimizer_step(optimizer)
    path = tmp_path / "a.ckpt"
    checkpoint = {
        "state_dict": strategy.lightning_module_state_dict(),
        "optimizer_states": [strategy.optimizer_state(optimizer)],
    }
    strategy.save_checkpoint(checkpoint, path)
    other = bound()
    fresh = torch.optim.Adam(other.lightning_module.parameters())
    other.take_optimizers([fresh], [])
    loaded = other.load_checkpoint(path)
    other.load_model_state_dict(loaded)
    other.load_optimizer_state_dict(loaded)
    assert torch.equal(other.lightning_module.layer.weight, strategy.lightning_module.layer.weight)
    weight = other.lightning_module.layer.weight
    assert torch.equal(fresh.state[weight]["exp_avg"], next(iter(optimizer.state.values()))["exp_avg"])
    assert fresh.state[weight]["step"].item() == 1
    other.take_optimizers([fresh, fresh], [])
    with pytest.raises(ConfigurationError, match="states of 1 optimizers, and the module has 2"):
        other.load_optimizer_state_dict(loaded)
    other.remove_checkpoint(path)
    assert not path.exists()


def test_alone_collectives_give_back_what_they_get():
    strategy = bound()
    tensors = [torch.ones(2), torch.tensor(3)]
    assert strategy.reduce_tensors(tensors, "mean") == tensors
    assert strategy.reduce(tensors[0]) is tensors[0]
    assert strategy.broadcast("x") == "x"
    assert strategy.gather_objects("x") == ["x"]
    assert strategy.reduce_boolean_decision(True)
    assert (strategy.world_size, strategy.global_rank, strategy.local_rank, strategy.node_rank) == (1, 0, 0, 0)
    assert strategy.is_global_zero
    assert strategy.distributed_sampler_kwargs is None
    with strategy.skip_gradient_sync():
        pass


def test_it_has_a_fabric_strategy_and_does_not_copy_it():
    fabric = FabricSingleDeviceStrategy("cpu")
    strategy = Strategy.from_fabric(fabric)
    strategy.precision_plugin = MixedPrecision("bf16-mixed", "cpu")
    assert fabric.precision.precision == strategy.precision == "bf16-mixed"
    assert strategy.root_device == torch.device("cpu")
    assert Strategy(precision_plugin=Precision()).precision == "32-true"


def test_without_a_module_it_says_so():
    with pytest.raises(ConfigurationError, match="has no module yet"):
        SingleDeviceStrategy().training_step(None)


def test_new_tensors_are_born_where_they_belong():
    with SingleDeviceStrategy("meta").tensor_init_context():
        assert nn.Linear(2, 2).weight.device.type == "meta"


def test_a_batch_moves_by_the_modules_own_hook():
    class Moves(Model):
        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            return batch, device, dataloader_idx

    strategy = bound(model=Moves())
    assert strategy.batch_to_device("batch", dataloader_idx=2) == ("batch", torch.device("cpu"), 2)
    assert SingleDeviceStrategy().batch_to_device("batch") == "batch"
