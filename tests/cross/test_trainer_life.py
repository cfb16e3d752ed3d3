"""One Trainer, through all that people do with it: several runs, at a prompt, in other processes, with every switch."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.trainer import Callback, LightningModule, Trainer


class Net(LightningModule):
    """Learns to double numbers, and notes how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def _loss(self, batch: Any) -> Tensor:
        return (self(batch[0]) - 2 * batch[0]).pow(2).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append((str(self.trainer.state.stage), torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        self.log("val_loss", self._loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self._loss(batch))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def data() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(-4.0, 4.0).view(8, 1)), batch_size=2)


def quiet(tmp_path: Path, **flags: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }
    return Trainer(**(defaults | flags))


def weights(net: LightningModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_one_trainer_for_all_entry_points_in_any_order(tmp_path: Path) -> None:
    trainer, net = quiet(tmp_path), Net()
    [before] = trainer.test(net, data(), verbose=False)
    trainer.fit(net, data(), data())
    after = weights(net)
    [tested] = trainer.test(net, data(), verbose=False)
    assert tested["test_loss"] < before["test_loss"]
    [validated] = trainer.validate(net, data(), verbose=False)
    assert validated["val_loss"] == pytest.approx(tested["test_loss"])
    predictions: Any = trainer.predict(net, data())
    assert torch.equal(torch.cat(predictions), net(torch.arange(-4.0, 4.0).view(8, 1)).detach())
    assert trainer.predict(net, data(), return_predictions=False) is None
    assert_same(weights(net), after)  # looking at it changed nothing
    assert (trainer.current_epoch, trainer.global_step) == (2, 8)


def test_a_second_fit_goes_on_and_another_module_is_trained_beside_the_first(tmp_path: Path) -> None:
    torch.manual_seed(1)
    parts, whole, other = Net(), Net(), Net()
    whole.load_state_dict(parts.state_dict())
    trainer = quiet(tmp_path, max_epochs=1)
    trainer.fit(parts, data())
    trainer.settings.max_epochs = 3
    trainer.fit(parts, data())
    assert (trainer.current_epoch, trainer.global_step) == (3, 12)
    quiet(tmp_path, max_epochs=3).fit(whole, data())
    assert_same(weights(parts), weights(whole))
    kept, fresh = weights(parts), weights(other)
    trainer.settings.max_epochs = 4
    trainer.fit(other, data())
    assert trainer.lightning_module is other
    assert_same(weights(parts), kept)
    assert not torch.equal(other.layer.weight, fresh["layer.weight"])


@pytest.mark.parametrize("inference_mode", [True, False])
def test_evaluation_has_no_gradients_by_the_way_that_was_asked_for(inference_mode: bool, tmp_path: Path) -> None:
    net = Net()
    quiet(tmp_path, inference_mode=inference_mode).validate(net, data(), verbose=False)
    assert set(net.seen) == {("validate", inference_mode, False)}


@pytest.mark.parametrize("steps", [0, 1, 3, -1])
def test_the_sanity_check_runs_so_many_batches_and_leaves_no_trace(steps: int, tmp_path: Path) -> None:
    torch.manual_seed(2)
    net, plain = Net(), Net()
    plain.load_state_dict(net.state_dict())
    trainer = quiet(tmp_path, num_sanity_val_steps=steps)
    trainer.fit(net, data(), data())
    checked = [stage for stage, *_ in net.seen if stage == "sanity_check"]
    assert len(checked) == (4 if steps == -1 else steps)
    assert len(net.seen) - len(checked) == 2 * 4
    quiet(tmp_path, num_sanity_val_steps=0).fit(plain, data(), data())
    assert_same(weights(net), weights(plain))


class Indeterminate(Net):
    """Calls an operation that has no deterministic form."""

    def _loss(self, batch: Any) -> Tensor:
        values = self(batch[0]).flatten()
        return torch.zeros(3).put_(torch.zeros(len(values), dtype=torch.int64), values, accumulate=False).sum()


def test_what_is_not_deterministic_is_refused_or_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        quiet(tmp_path, deterministic=True).fit(Indeterminate(), data())
    with pytest.warns(UserWarning, match="does not have a deterministic implementation"):
        quiet(tmp_path, deterministic="warn").fit(Indeterminate(), data())
    assert not torch.are_deterministic_algorithms_enabled()
    quiet(tmp_path).fit(Indeterminate(), data())


class Root(torch.autograd.Function):
    """A gradient that is no number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]  # one gradient for one input
        return grad * float("nan")


class BadGradient(Net):
    def _loss(self, batch: Any) -> Tensor:
        loss: Tensor = Root.apply(super()._loss(batch))
        return loss


def test_an_anomaly_is_found_where_it_arises(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="'RootBackward' returned nan"):
        quiet(tmp_path, detect_anomaly=True).fit(BadGradient(), data())
    assert not torch.is_anomaly_enabled()
    quiet(tmp_path).fit(BadGradient(), data())


def test_a_module_is_built_where_and_as_it_will_be(tmp_path: Path) -> None:
    trainer = quiet(tmp_path, precision="64-true")
    with trainer.init_module():
        net = Net()
    assert net.layer.weight.dtype == torch.float64
    with trainer.init_module(empty_init=True):
        torch.manual_seed(3)
        state = torch.random.get_rng_state()
        Net()
        assert torch.equal(torch.random.get_rng_state(), state), "weights were drawn that will be loaded"
    trainer.fit(net, DataLoader(TensorDataset(torch.ones(4, 1, dtype=torch.float64))))
    assert net.layer.weight.dtype == torch.float64


def test_a_quick_run_runs_so_many_batches_of_everything(tmp_path: Path) -> None:
    net = Net()
    trainer = quiet(tmp_path, fast_dev_run=3, max_epochs=None)
    trainer.fit(net, data(), data())
    assert (trainer.global_step, trainer.current_epoch, len(net.seen)) == (3, 1, 3)
    trainer.test(net, data(), verbose=False)
    assert trainer.num_test_batches == [3]


def child(folder: str) -> None:
    torch.set_num_threads(1)
    trainer, net = quiet(Path(folder)), Net()
    torch.nn.init.ones_(net.layer.weight)
    torch.nn.init.ones_(net.layer.bias)
    trainer.fit(net, data(), data())
    trainer.save_checkpoint(Path(folder) / f"{os.getpid()}.ckpt", weights_only=True)


def test_several_processes_train_by_themselves_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=child, args=(str(tmp_path),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    child(str(tmp_path))
    states = [torch.load(path, weights_only=True)["state_dict"] for path in tmp_path.glob("*.ckpt")]
    assert len(states) == 3
    for state in states[1:]:
        assert_same(states[0], state)


# What is typed: a blank line ends a block.
PROMPT = """\
import sys, time, torch
torch.set_num_threads(1)
from fulmen.trainer import Callback, Trainer
from fulmen.trainer.demos import BoringModel
class Slow(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.max_epochs == -1:
            print("BATCH", flush=True)
            time.sleep(0.05)

silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
trainer = Trainer(accelerator="cpu", max_epochs=-1, callbacks=[Slow()], limit_val_batches=0, **silent)
net = BoringModel()
trainer.fit(net)
print("PROMPT", trainer.interrupted, net.training, trainer.global_step > 0, flush=True)
done = trainer.global_step
trainer.settings.max_epochs, trainer.limit_train_batches = trainer.current_epoch + 2, 3
trainer.fit(net)
tested = trainer.test(net, verbose=False)
print("AGAIN", trainer.state.status, trainer.global_step > done, tested, flush=True)
"""


def test_ctrl_c_at_a_prompt_gives_the_prompt_back_and_a_trainer_that_works(tmp_path: Path) -> None:
    # `-i` makes Python believe that a person types, as a notebook does.
    process = subprocess.Popen(
        [sys.executable, "-i"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "err").open("w"),
        text=True,
        cwd=tmp_path,
        # Who started these tests may have had it ignored, as a shell does for what it runs in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(PROMPT)
        process.stdin.flush()
        heard = process.stdout.readline()
        if heard:
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
    finally:
        watchdog.cancel()
    err = (tmp_path / "err").read_text()
    lines = [line for line in out.splitlines() if line != "BATCH"]
    assert lines == ["PROMPT True True True", "AGAIN finished True [{}]"], err[-3000:]
    assert process.returncode == 0


class Switched(Callback):
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.benchmark = torch.backends.cudnn.benchmark


@pytest.mark.parametrize(("flags", "expected"), [({"benchmark": True}, True), ({"deterministic": True}, False)])
def test_cudnn_may_try_what_is_fastest_while_the_run_lasts(flags: Any, expected: bool, tmp_path: Path) -> None:
    before = torch.backends.cudnn.benchmark
    callback = Switched()
    quiet(tmp_path, callbacks=[callback], max_epochs=1, **flags).fit(Net(), data())
    assert callback.benchmark is expected
    assert torch.backends.cudnn.benchmark is before
