"""Two processes search together: the same decision in both, also when memory runs out in one of them only."""

import faulthandler
import os
import random
import signal
import subprocess
import sys
import time
import traceback

import pytest
import torch
import torch._dynamo  # DDP imports it, which takes seconds; forked processes have what is there already
import torch.multiprocessing as mp
from torch.utils.data import DataLoader

from fulmen.fabric.errors import ConfigurationError, ProcessFailedError
from fulmen.fabric.strategies.sharded_tensors import is_split
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.trainer import Trainer
from fulmen.tuner.callbacks import BatchSizeFinder
from fulmen.tuner.tuner import Tuner

SEED = 11
NUM_PAIRS = 12
METHODS = ("fit", "validate", "test", "predict")
# Where memory runs out, in one process only.
MOMENTS = ("first step", "last step", "backward", "optimizer", "loader", "epoch end")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def trainer(folder, **flags):
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    ddp = {"strategy": "ddp", "devices": 2, "accelerator": "cpu"}
    return Trainer(**{"default_root_dir": folder, "logger": False, "max_epochs": 1, **quiet, **ddp, **flags})


def pairs_of_limits():
    draw = random.Random(SEED)
    return [(draw.randint(1, 30), draw.randint(1, 30)) for _ in range(NUM_PAIRS)]


def reports(kit, rank, folder):
    """What one process finds out, by case: a value, or an error."""
    Model, Memory, Data = kit.Model, kit.Memory, kit.Data

    class Talking(Model):
        """Asks the other process for something wherever it can."""

        def __init__(self, **options):
            import torchmetrics

            super().__init__(**options)
            self.mean = torchmetrics.MeanMetric()

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            assert len(self.all_gather(loss)) == self.trainer.world_size == 2
            self.trainer.strategy.barrier()
            self.mean.update(loss.detach())
            self.log("talked", loss, sync_dist=True, on_step=True, on_epoch=True)
            self.log("mean", self.mean)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val", self.step(batch), sync_dist=True)

        def on_validation_epoch_end(self):
            assert self.trainer.strategy.broadcast(self.global_rank) in (0, self.global_rank)

    class Full(Model):
        def __init__(self, moment):
            super().__init__()
            self.moment = moment

        def fill(self, moment, size=None):
            size = self.batch_size if size is None else size
            if self.moment == moment and size > 8 and self.global_rank == 1:
                raise FULL

        def training_step(self, batch, batch_idx):
            self.fill("first step")
            self.fill("last step", 0 if batch_idx < 1 else None)
            return super().training_step(batch, batch_idx)

        def on_after_backward(self):
            self.fill("backward")

        def on_before_optimizer_step(self, optimizer):
            self.fill("optimizer")

        def on_train_epoch_end(self):
            self.fill("epoch end")

        def train_dataloader(self):
            self.fill("loader")
            return super().train_dataloader()

    class Manual(Model):
        def __init__(self, **options):
            super().__init__(**options)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            loss = self.step(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    class Signalled(Model):
        def training_step(self, batch, batch_idx):
            if rank == 1 and self.batch_size == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            if self.batch_size > 8:
                time.sleep(0.2)  # the other one is to hear of it
            return super().training_step(batch, batch_idx)

    class Sizes(Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.seen.append(len(batch[0]))

    def found(module, method="fit", **options):
        size = Tuner(trainer(folder, limit_val_batches=options.pop("limit_val_batches", 2))).scale_batch_size(
            module, method=method, **{"margin": 0.0, **options}
        )
        assert module.batch_size == size
        return size

    def sweeps():
        torch.manual_seed(0)
        module = Model()
        loader = DataLoader(kit.Points(), 4, shuffle=True)
        finder = Tuner(trainer(folder)).lr_find(module, loader, num_training=30, max_lr=3.0)
        assert finder.suggestion() == module.lr
        return module.lr, finder.results["raw_loss"]

    def fits_on(module, **flags):
        finder, sizes, run = BatchSizeFinder(mode="binsearch", margin=0.0), Sizes(), None
        run = trainer(folder, callbacks=[finder, sizes], **flags)
        run.fit(module)
        weights = [value.tolist() for value in module.state_dict().values()]
        return finder.optimal_batch_size, sizes.seen, run.num_training_batches, weights

    def leaves_no_trace(moment):
        torch.manual_seed(0)
        module, data = Full(moment), Data()
        run = trainer(folder)
        assert (run.strategy.launcher, run.num_devices) != (None, 1)
        Tuner(run).lr_find(module, datamodule=data, num_training=3, update_attr=False)  # groups and ranks are known
        before = kit.everything(run, module, data, root=folder)
        try:
            size = Tuner(run).scale_batch_size(module, datamodule=data, max_val=16)
        finally:
            if moment != "an error":
                assert module.batch_size == data.hparams.batch_size == size == 8
            module.batch_size = data.hparams.batch_size = 4
            assert kit.everything(run, module, data, root=folder) == before

    def split():
        torch.manual_seed(0)
        module, loader = Model(), DataLoader(kit.Points(), 4)
        before = {name: value.clone() for name, value in module.state_dict().items()}
        run = trainer(folder, strategy="fsdp")
        rate = Tuner(run).lr_find(module, loader, num_training=30, max_lr=3.0).suggestion()
        assert not is_split(module)
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
        with pytest.raises(ConfigurationError, match="cannot be tried out in each process by itself"):
            Tuner(run).scale_batch_size(Model())
        run.fit(module, loader)
        assert is_split(module)
        Tuner(run).lr_find(module, loader, num_training=5, update_attr=False)  # what is split already stays so
        return rate

    def fails(on_rank):
        class Wrong(Model):
            def step(self, batch):
                if rank == on_rank and len(batch[0]) == 4:
                    raise KeyError("of the user")
                return super().step(batch)

        return found(Wrong())

    cases = {
        "sweep": sweeps,
        **{
            f"limits {pair}": lambda pair=pair: found(
                Model(memory=Memory(pair[rank])), mode="binsearch", steps_per_trial=2, limit_val_batches=0
            )
            for pair in pairs_of_limits()
        },
        **{
            method: lambda method=method: found(Model(memory=Memory((20, 9)[rank])), method, mode="binsearch")
            for method in METHODS
        },
        **{moment: lambda moment=moment: found(Full(moment), limit_val_batches=0) for moment in MOMENTS},
        "talking": lambda: found(Talking(memory=Memory((20, 9)[rank])), mode="binsearch"),
        "manual": lambda: found(Manual(memory=Memory((20, 9)[rank])), mode="binsearch"),
        "in a fit": lambda: fits_on(Talking(memory=Memory((20, 9)[rank]))),
        "no trace": lambda: leaves_no_trace("backward"),
        "user error on 0": lambda: fails(0),
        "user error on 1": lambda: fails(1),
        "signal": lambda: found(Signalled(), max_val=16),
        "split": split,
        "after it": lambda: found(Model(memory=Memory((20, 9)[rank]))),
    }
    for name, case in cases.items():
        try:
            yield name, case()
        except BaseException as error:
            yield name, (type(error).__name__, str(error), traceback.format_exc())


def one_process(rank, kit, folder, port):
    os.environ.update(
        TORCHELASTIC_RUN_ID="test",
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(100, exit=True)  # who waits for the other for ever has failed
    torch.save(dict(reports(kit, rank, folder / "run")), folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def told(kit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    (folder / "run").mkdir()
    # Kept here, so that nobody else can take its port.
    store = torch.distributed.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    port = store.port
    mp.start_processes(one_process, args=(kit, folder, port), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_both_sweep_the_same_curve(told):
    assert told[0]["sweep"] == told[1]["sweep"]
    rate, losses = told[0]["sweep"]
    assert 1e-8 < rate < 3.0
    assert len(losses) > 10


def test_a_module_that_is_split_for_the_sweep_is_whole_afterwards(told):
    rates = [one["split"] for one in told]
    assert rates[0] == rates[1]
    assert isinstance(rates[0], float), rates


def test_both_find_what_fits_into_the_smaller_memory(told):
    for pair in pairs_of_limits():
        # 48 samples: each process has 24.
        assert [one[f"limits {pair}"] for one in told] == [min(*pair, 24)] * 2


@pytest.mark.parametrize("method", METHODS)
def test_for_every_entry_point(told, method):
    assert [one[method] for one in told] == [9, 9]


@pytest.mark.parametrize("moment", MOMENTS)
def test_wherever_memory_runs_out_in_one_of_them(told, moment):
    assert [one[moment] for one in told] == [8, 8]


@pytest.mark.parametrize("name", ["talking", "manual"])
def test_nobody_waits_for_who_has_no_memory(told, name):
    assert [one[name] for one in told] == [9, 9]


def test_a_fit_goes_on_with_it(told):
    assert told[0]["in a fit"] == told[1]["in a fit"]
    size, seen, num_batches, _ = told[0]["in a fit"]
    assert (size, seen, num_batches) == (9, [9, 9, 6], 3)


def test_in_no_process_is_a_trace_left(told):
    assert [one["no trace"] for one in told] == [None, None]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_the_user_in_one_ends_both(told, rank):
    own, other = (told[one][f"user error on {rank}"] for one in (rank, 1 - rank))
    assert own[:2] == ("KeyError", "'of the user'")
    assert other[0] == ProcessFailedError.__name__
    assert f"the trial of batch size 4 failed on rank {rank}, with KeyError: 'of the user'. The processes" in other[1]


def test_a_signal_to_one_ends_both_after_a_trial(told):
    assert [one["signal"][:2] for one in told] == [("InterruptedBySignal", str(128 + signal.SIGTERM))] * 2
    assert [one["after it"] for one in told] == [8, 8]


PROGRAM = """
import sys
import torch
import fulmen.trainer as L
from fulmen.trainer.demos import BoringModel, RandomDataset
from fulmen.tuner import Tuner

class Model(BoringModel):
    def __init__(self):
        super().__init__()
        self.batch_size = 2
        self.lr = 1e-3

    def training_step(self, batch, batch_idx):
        if len(batch) > 12 - 4 * self.global_rank:
            raise MemoryError
        return super().training_step(batch, batch_idx)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(RandomDataset(32, 64), self.batch_size)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

if __name__ == "__main__":
    model = Model()
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy=sys.argv[1], logger=False, enable_progress_bar=False,
                        enable_checkpointing=False, enable_model_summary=False, max_epochs=1)
    tuner = Tuner(trainer)
    size = tuner.scale_batch_size(model, mode="binsearch", margin=0.0)
    assert size == model.batch_size == 8, (size, model.batch_size)
    assert tuner.batch_size_trials.results["batch_size"] == [2, 8, 16, 12, 10, 9], tuner.batch_size_trials.results
    rate = tuner.lr_find(model, num_training=20).suggestion()
    assert trainer.global_step == 0 and trainer.lightning_module is None
    trainer.fit(model)
    assert trainer.global_step == 4, trainer.global_step
    sys.stdout.write(f"found {size} and {rate}\\n")  # one write: two processes share the pipe
"""


def test_they_may_be_scripts(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), "ddp"], capture_output=True, text=True, timeout=150, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("found")]
    assert len(lines) == 2
    assert len(set(lines)) == 1


def test_what_forked_processes_find_comes_home(kit, make_trainer):
    class Narrow(kit.Model):
        def step(self, batch):
            kit.Memory((20, 9)[self.global_rank]).take(len(batch[0]))
            return super().step(batch)

    model, run = Narrow(), make_trainer(devices=2, strategy="ddp_fork")
    tuner = Tuner(run)
    assert tuner.scale_batch_size(model, mode="binsearch", margin=0.0) == model.batch_size == 9
    assert tuner.batch_size_trials.results["batch_size"] == [2, 8, 16, 12, 10, 9]
    assert tuner.batch_size_trials.results["fits"] == [True, True, False, False, False, True]
    assert (run.global_step, run.lightning_module) == (0, None)
