import pytest
import torch
import torchmetrics
from torch import nn

from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.strategies.alone import alone
from fulmen.trainer.strategies.ddp import DDPStrategy
from fulmen.trainer.strategies.single_device import SingleDeviceStrategy


class OfThree(DDPStrategy):
    """As if it were the second of three processes; who asks the others gets an error, for there is no group."""

    world_size, global_rank = 3, 1

    def barrier(self, name=None):
        raise AssertionError("it waits")

    reduce = broadcast = all_gather = gather_objects = reduce_boolean_decision = barrier


class Model(BoringModel):
    def __init__(self):
        super().__init__()
        self.norm = nn.SyncBatchNorm(3)
        self.mean = torchmetrics.MeanMetric()


@pytest.fixture
def strategy():
    strategy = OfThree(parallel_devices=[torch.device("cpu")] * 3)
    strategy.connect(Model())
    strategy.model = nn.Sequential(strategy.lightning_module)  # wrapped
    return strategy


def test_it_answers_as_if_the_others_had_said_the_same(strategy):
    one = alone(strategy)
    value = torch.tensor([1.0, 2.0])
    assert one.reduce(value) is value
    assert one.reduce_tensors([value], op="sum") == [value]
    assert torch.equal(one.all_gather(value), torch.stack([value] * 3))
    assert one.gather_objects("own") == ["own"] * 3
    assert one.broadcast("own", src=2) == "own"
    assert one.barrier("name") is None
    assert one.shared_store() is None
    assert [one.reduce_boolean_decision(vote, all=True) for vote in (True, False)] == [True, False]
    with one.skip_gradient_sync():
        pass


def test_it_knows_who_it_is_and_trains_past_the_wrapper(strategy):
    one = alone(strategy)
    assert (one.world_size, one.global_rank, type(one).__name__) == (3, 1, "OfThree")
    assert isinstance(one, OfThree)
    assert one.model is one.lightning_module is strategy.lightning_module
    assert strategy.model is not strategy.lightning_module
    assert type(strategy) is OfThree
    assert one.step_function("training_step") == one.lightning_module.training_step


def test_layers_and_metrics_look_at_this_process_only(strategy):
    module = alone(strategy).lightning_module
    batch = torch.rand(4, 3, 2)
    # The synchronised layer runs on GPUs only.
    torch.testing.assert_close(module.norm(batch), nn.BatchNorm1d(3)(batch))
    assert not module.mean.sync_on_compute


def test_one_process_may_be_alone_too():
    strategy = SingleDeviceStrategy()
    strategy.connect(BoringModel())
    assert alone(strategy).gather_objects(1) == [1]


def test_where_no_process_has_the_whole_module_none_can_be(strategy):
    strategy.shards_parameters = True
    with pytest.raises(
        ConfigurationError, match="OfThree in 3 processes cannot be tried out in each process by itself"
    ):
        alone(strategy)
