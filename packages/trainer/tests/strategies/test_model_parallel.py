"""Plans over meshes of four real processes: weights, metrics and steps are those of one process, also when resumed."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import SumMetric

from fulmen.fabric.strategies.model_parallel import ModelParallelStrategy as FabricModelParallelStrategy
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.strategies.model_parallel import ModelParallelStrategy
from fulmen.trainer.trainer import Trainer

pytestmark = pytest.mark.timeout(600)  # on a busy machine

PROCESSES, SAMPLES, WINDOW = 4, 48, 2
PLAN = {"body.0": "column", "body.2": "row", "body": "shard"}
# Replicas, parts of the parameters, parts of the tensors.
MESHES = ((2, 1, 2), (1, 2, 2), (2, 2, 1), (1, 4, 1), (1, 1, 4))
RESUMED = MESHES[:2]  # on the same mesh; all of them go on another one


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh())
        self.head = nn.Linear(4, 1)
        self.total = SumMetric()
        self.double()

    def training_step(self, batch, batch_idx):
        loss = (self.head(self.body(batch[0])) - batch[1]).pow(2).mean()
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        count = torch.tensor(float(len(batch[0])))
        self.log("seen", count, on_step=False, on_epoch=True, sync_dist=True, reduce_fx="sum")
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("squares", batch[1].pow(2).sum(), sync_dist=True, reduce_fx="sum")
        self.total(len(batch[0]))
        self.log("total", self.total)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Reader(LightningModule):
    """Predicts each token from those before it; a process gets its part of the sequence."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.qkv, self.head = nn.Embedding(7, 6), nn.Linear(6, 18), nn.Linear(6, 7)
        self.double()

    def forward(self, tokens):
        q, k, v = self.qkv(self.embed(tokens)).unflatten(-1, (3, 2, 3)).movedim(2, 0).transpose(2, 3)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(attended.transpose(1, 2).flatten(2))

    def training_step(self, batch, batch_idx):
        strategy = self.trainer.strategy
        here, following = strategy.part_of_sequence(batch) if isinstance(strategy, ModelParallelStrategy) else batch
        loss = nn.functional.cross_entropy(self(here).flatten(0, 1), following.flatten())
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Watch(Callback):
    """Saves inside the second epoch, in the middle of a window, and keeps what was logged."""

    def __init__(self, path=None):
        self.path, self.logged, self.steps = path, [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.path is not None and (trainer.current_epoch, batch_idx) == (1, 1):
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer, pl_module):
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.steps.append(trainer.global_step)


def data(batch_size):
    x = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return DataLoader(TensorDataset(x, x.prod(1, keepdim=True)), batch_size=batch_size)


def sequences(batch_size):
    tokens = torch.randint(7, (SAMPLES, 9), generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), batch_size=batch_size)


def fitted(folder, sizes, *, save=None, ckpt_path=None, context=None):
    """Whole weights after two epochs of four batches, what was logged, and the global steps."""
    replicas, parts, tensors = sizes or (1, 1, 1)
    strategy = "auto"
    if sizes:
        plan = PLAN if context is None else {"": "ring", "qkv": "shard"}
        kind = ModelParallelStrategy if ckpt_path is None else FabricModelParallelStrategy  # the Trainer takes both
        strategy = kind(
            data_parallel_size=parts,
            tensor_parallel_size=tensors,
            plan=plan,
            replicate_size=replicas,
            context_parallel_size=context or 1,
        )
    watch, module = Watch(save), Net() if context is None else Reader()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        accelerator="cpu",
        devices=PROCESSES if sizes else 1,
        strategy=strategy,
        callbacks=[watch],
        max_epochs=2,
        accumulate_grad_batches=WINDOW,
        gradient_clip_val=0.1,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        precision="64-true",
        **quiet,
    )
    size = 12 * (context or 1) // (replicas * parts)
    if context is None:
        trainer.fit(module, data(size), data(size), ckpt_path=ckpt_path)
    else:
        trainer.fit(module, sequences(size), ckpt_path=ckpt_path)
    after = [] if context else trainer.validate(module, data(size), verbose=False)
    state = module.state_dict()
    weights = {name: getattr(value, "full_tensor", value.clone)().detach().clone() for name, value in state.items()}
    return {"weights": weights, "logged": watch.logged, "steps": watch.steps, "after": after}


def run_all(folder, rank):
    seen = {}
    for sizes in MESHES:
        seen[sizes] = fitted(folder, sizes, save=folder / f"{sizes}.ckpt")
    for place, sizes in enumerate(MESHES):
        if sizes in RESUMED:
            seen["resumed", sizes] = fitted(folder, sizes, ckpt_path=folder / f"{sizes}.ckpt")
        seen["moved", sizes] = fitted(folder, sizes, ckpt_path=folder / f"{MESHES[place - 1]}.ckpt")
    path = folder / "context.ckpt"
    seen["context"] = fitted(folder, (2, 2, 1), save=path, context=2)
    seen["context, resumed"] = fitted(folder, (2, 2, 1), ckpt_path=path, context=2)
    seen["context, moved"] = fitted(folder, (1, 4, 1), ckpt_path=path, context=4)
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory, in_processes):
    import torch._dynamo  # once, before the fork
    import torch.distributed.fsdp  # once, before the fork
    import torch.distributed.tensor.parallel  # noqa: F401  # once, before the fork

    folder = tmp_path_factory.mktemp("meshes")
    found = in_processes(run_all, folder, PROCESSES)
    return [*found, {None: fitted(folder, None), "context": fitted(folder, None, context=1)}]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_every_mesh_trains_and_logs_as_one_process_does(seen, sizes):
    *found, plain = [*seen[:-1], seen[-1][None]]
    for one in found:
        assert one[sizes]["steps"] == plain["steps"] == [2, 4]
        for name, value in plain["weights"].items():
            torch.testing.assert_close(one[sizes]["weights"][name], value, rtol=0, atol=1e-9)
        for logged, expected in zip(one[sizes]["logged"], plain["logged"], strict=True):
            assert logged == pytest.approx(expected, abs=1e-6)
        assert one[sizes]["after"] == [pytest.approx(plain["after"][0], abs=1e-6)]  # split once, evaluated once more
    assert plain["logged"][0]["seen"] == SAMPLES
    assert plain["logged"][0]["total"] == SAMPLES  # a metric object's too


@pytest.mark.parametrize("sizes", RESUMED, ids=str)
def test_it_goes_on_inside_an_epoch_with_what_was_logged(seen, sizes):
    *found, plain = [*seen[:-1], seen[-1][None]]
    for one in found:
        assert one["resumed", sizes]["steps"] == [4]
        for name, value in plain["weights"].items():
            torch.testing.assert_close(one["resumed", sizes]["weights"][name], value, rtol=0, atol=1e-9)
        assert one["resumed", sizes]["logged"][0] == pytest.approx(plain["logged"][1], abs=1e-6)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_it_goes_on_so_on_another_mesh_too(seen, sizes):
    *found, plain = [*seen[:-1], seen[-1][None]]
    for one in found:
        assert one["moved", sizes]["steps"] == [4]
        for name, value in plain["weights"].items():
            torch.testing.assert_close(one["moved", sizes]["weights"][name], value, rtol=0, atol=1e-9)
        assert one["moved", sizes]["logged"][0] == pytest.approx(plain["logged"][1], abs=1e-6)


@pytest.mark.parametrize("how", ["context", "context, resumed", "context, moved"])
def test_processes_that_share_sequences_train_as_one_does(seen, how):
    *found, plain = [*seen[:-1], seen[-1]["context"]]
    for one in found:
        assert one[how]["steps"][-1] == plain["steps"][-1] == 4
        for name, value in plain["weights"].items():
            torch.testing.assert_close(one[how]["weights"][name], value, rtol=0, atol=1e-9)
        if how != "context, moved":  # samples weigh more where more processes see them
            assert one[how]["logged"][-1] == pytest.approx(plain["logged"][-1], abs=1e-6)


# --- without processes


def test_a_plan_needs_no_configure_model():
    strategy = ModelParallelStrategy(plan=PLAN)
    strategy.connect(Net())
    with pytest.raises(ConfigurationError, match="Define configure_model"):
        ModelParallelStrategy().connect(Net())


@pytest.mark.parametrize(
    ("strategy", "flags", "says"),
    [
        ({"plan": {"bodies.0": "column"}}, {}, r"names nothing in Net.*The nearest names are 'body"),
        ({"plan": {"head": "column"}, "data_parallel_size": 1}, {}, "its 1 columns are no multiple of 4"),
        ({"plan": {"body": "column"}}, {}, r"names 'body', a Sequential"),
        ({"plan": {"body": "shard"}, "tensor_parallel_size": 4}, {}, "splits nothing over the tensor axis"),
        ({"plan": PLAN, "tensor_parallel_size": 3}, {}, "does not fit 4 processes"),
        ({}, {}, r"has no configure_model\(\)"),
        ({"plan": PLAN}, {"sync_batchnorm": True}, r"SyncBatchNorm runs on GPUs only"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_process_starts(tmp_path, monkeypatch, strategy, flags, says):
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kwargs: pytest.fail("a process was started"))
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    with pytest.raises(ConfigurationError, match=says):
        Trainer(
            accelerator="cpu",
            devices=PROCESSES,
            strategy=ModelParallelStrategy(**strategy),
            default_root_dir=tmp_path,
            **off,
            **flags,
        ).fit(Net(), data(4))


def test_a_plan_that_names_nothing_is_seen_when_the_module_is_connected():
    with pytest.raises(ConfigurationError, match=r"names nothing in Net.*'body\.\*'"):
        ModelParallelStrategy(plan={"bodies.0": "column"}).connect(Net())
