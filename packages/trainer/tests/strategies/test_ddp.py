"""Two real processes with gloo; they do everything in one life, for their start is what takes time."""

import json
import os

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.gloo_threads import close_group
from fulmen.fabric.registry import Registry
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.data.prepare_loaders import prepare
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.stages import Stage
from fulmen.trainer.strategies.ddp import DDPStrategy
from fulmen.trainer.strategies.layer_sync import TorchSyncBatchNorm

CPU = torch.device("cpu")


class Model(LightningModule):
    def __init__(self, *, automatic=True):
        super().__init__()
        self.automatic_optimization = automatic
        torch.manual_seed(torch.distributed.get_rank() if torch.distributed.is_initialized() else 0)
        self.first = nn.Linear(2, 1, bias=False)
        self.second = nn.Linear(2, 1, bias=False)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, batch):
        return self.first(batch) + self.second(batch)

    def training_step(self, batch, batch_idx):
        return self(batch).sum()

    def validation_step(self, batch, batch_idx):
        return self(batch)


class TwoBackwards(Model):
    """Manual: two losses, each of a part of the parameters, backward inside the step; reads shared buffers."""

    def __init__(self):
        super().__init__(automatic=False)

    def training_step(self, batch, batch_idx):
        buffer = self.seen.item()
        self.seen += 1 + torch.distributed.get_rank()
        self.strategy.backward(self.first(batch).sum(), None)
        self.strategy.backward(self.second(batch).sum(), None)
        return buffer


class GaveUp(Exception):
    pass


class FailsOnce(Model):
    failed = False

    def training_step(self, batch, batch_idx):
        if not self.failed:
            self.failed = True
            raise GaveUp
        return super().training_step(batch, batch_idx)


def gradients(model):
    return [parameter.grad.flatten().tolist() for parameter in (model.first.weight, model.second.weight)]


def started(strategy, model, *, training=True):
    strategy.connect(model)
    strategy.setup_environment()
    strategy.setup_model(training=training)
    return strategy


def work(rank, port, folder):
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), WORLD_SIZE="2", NODE_RANK="0"
    )
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    torch.set_num_threads(1)
    seen = {}

    def ddp(**kwargs):
        return DDPStrategy(parallel_devices=[CPU, CPU], cluster_environment=LightningEnvironment(), **kwargs)

    batch = torch.full((1, 2), 1.0 + 2.0 * rank)  # mean over the processes: 2
    strategy = started(ddp(), Model())
    model = strategy.lightning_module
    seen["ranks"] = [strategy.global_rank, strategy.world_size, strategy.is_global_zero]
    seen["wrapped"] = isinstance(strategy.model, DistributedDataParallel)
    step = strategy.step_function("training_step")
    strategy.backward(step(batch, 0), None)
    seen["mean"] = gradients(model)
    model.zero_grad()
    with strategy.skip_gradient_sync(True):
        strategy.backward(step(batch, 0), None)
    seen["own"] = gradients(model)
    strategy.backward(step(batch, 1), None)
    seen["accumulated"] = gradients(model)
    seen["weights"] = model.first.weight.flatten().tolist()
    seen["evaluates past the wrapper"] = strategy.step_function("validation_step") == model.validation_step
    seen["evaluates"] = strategy.validation_step(batch, 0).shape == (1, 1)

    tensors = [torch.tensor(float(rank)), torch.tensor([[1, 2 + rank]]), torch.ones(2, dtype=torch.float64)]
    seen["sums"] = [tensor.tolist() for tensor in strategy.reduce_tensors(tensors, "sum")]
    seen["means"] = [tensor.tolist() for tensor in strategy.reduce_tensors(tensors, "mean")]
    seen["objects"] = strategy.gather_objects({"rank": rank})
    seen["broadcast"] = strategy.broadcast(f"from {rank}", 1)
    seen["all"] = strategy.reduce_boolean_decision(rank == 0)
    seen["any"] = strategy.reduce_boolean_decision(rank == 0, all=False)
    for stage in (Stage.TRAIN, Stage.VALIDATE):
        [view] = prepare(DataLoader(range(5), batch_size=2), stage=stage, strategy=strategy).views
        seen[stage.value] = [item.tolist() for item in view]
    strategy.teardown()
    seen["unwrapped"] = strategy.model is model

    # Manual optimization: only what was prepared for each backward can be reduced.
    manual = TwoBackwards()
    strategy = started(ddp(find_unused_parameters=True), manual)
    object.__setattr__(manual, "strategy", strategy)
    step = strategy.step_function("training_step")
    seen["buffers"] = [step(batch, index) for index in range(3)]
    seen["manual"] = gradients(manual)
    seen["plain"] = strategy.backward_is_plain
    strategy.teardown()

    # A step that fails leaves no trace in the wrapper.
    strategy = started(ddp(), FailsOnce())
    with pytest.raises(GaveUp):
        strategy.training_step(batch, 0)
    strategy.backward(strategy.training_step(batch, 0), None)
    seen["after failure"] = gradients(strategy.lightning_module)
    strategy.teardown()

    # What is unfrozen while it runs is reduced from then on.
    later = Model()
    later.first.requires_grad_(False)
    strategy = started(ddp(), later)
    step = strategy.step_function("training_step")
    strategy.backward(step(batch, 0), None)
    seen["left out"] = later.first.weight.grad is None
    later.first.requires_grad_(True)
    seen["trained later"] = []
    for index in range(2):
        later.zero_grad()
        strategy.backward(step(batch, index), None)
        seen["trained later"].append(gradients(later))
        wrapper = strategy.model
    strategy.backward(step(batch, 2), None)
    seen["wrapped anew once"] = strategy.model is wrapper
    strategy.teardown()

    frozen = Model()
    frozen.requires_grad_(False)
    seen["frozen is not wrapped"] = started(ddp(), frozen).model is frozen

    strategy = ddp()
    strategy.layer_sync = TorchSyncBatchNorm()
    with_norm = Model()
    with_norm.norm = nn.BatchNorm1d(2)
    try:
        started(strategy, with_norm)
    except ConfigurationError as error:
        seen["sync"] = str(error)

    (folder / f"{rank}.json").write_text(json.dumps(seen))
    close_group()


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    # Kept here, so that nobody else can take its port.
    store = torch.distributed.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    port = store.port
    torch.multiprocessing.start_processes(work, args=(port, folder), nprocs=2, start_method="fork")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_each_process_knows_itself(seen):
    assert [one["ranks"] for one in seen] == [[0, 2, True], [1, 2, False]]


def test_training_goes_through_the_wrapper_and_means_gradients(seen):
    for rank, one in enumerate(seen):
        own = 1.0 + 2.0 * rank
        assert one["wrapped"]
        assert one["mean"] == [[2.0, 2.0]] * 2
        assert one["own"] == [[own, own]] * 2
        # What was accumulated before is meant with it.
        assert one["accumulated"] == [[4.0, 4.0]] * 2
        assert one["weights"] == seen[0]["weights"]


def test_evaluation_goes_past_the_wrapper(seen):
    assert all(one["evaluates past the wrapper"] and one["evaluates"] for one in seen)


def test_processes_speak_together(seen):
    for one in seen:
        assert one["sums"] == [1.0, [[2, 5]], [2.0, 2.0]]
        assert one["means"] == [0.5, [[1.0, 2.5]], [1.0, 1.0]]
        assert one["objects"] == [{"rank": 0}, {"rank": 1}]
        assert one["broadcast"] == "from 1"
        assert (one["all"], one["any"]) == (False, True)


def test_training_pads_and_evaluation_does_not(seen):
    assert [one["train"] for one in seen] == [[[0, 2], [4]], [[1, 3], [0]]]
    assert [one["validate"] for one in seen] == [[[0, 2], [4]], [[1, 3]]]


def test_manual_optimization_reduces_each_backward_and_shares_buffers(seen):
    for one in seen:
        assert one["manual"] == [[6.0, 6.0]] * 2
        # Before each forward every process takes the buffers of the first one.
        assert one["buffers"] == [0.0, 1.0, 2.0]
        assert not one["plain"]


def test_a_step_that_fails_leaves_no_trace(seen):
    assert [one["after failure"] for one in seen] == [[[2.0, 2.0]] * 2] * 2


def test_a_parameter_that_is_unfrozen_while_it_runs_is_reduced(seen):
    for one in seen:
        assert one["left out"]
        assert one["trained later"] == [[[2.0, 2.0]] * 2] * 2
        assert one["wrapped anew once"]


def test_it_ends_as_it_began(seen):
    assert all(one["unwrapped"] and one["frozen is not wrapped"] for one in seen)


def test_batch_norm_cannot_be_synchronised_on_the_cpu(seen):
    assert all("sync_batchnorm=True" in one["sync"] for one in seen)


def test_its_names_can_be_registered_for_a_class_of_ones_own():
    class Own(DDPStrategy):
        pass

    registry = Registry("strategy")
    Own.register_strategies(registry)
    entry = registry["ddp_fork_find_unused_parameters_true"]
    assert entry.value is Own
    assert dict(entry.preset) == {"start_method": "fork", "find_unused_parameters": True}


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="find_unused_parameter"):
        DDPStrategy(find_unused_parameter=True)
