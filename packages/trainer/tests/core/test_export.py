import io
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ConfigurationError, MissingPackageError


class Net(LightningModule):
    def __init__(self, width=3):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(width, 2)
        self.drop = nn.Dropout(0.9)
        self.frozen = nn.BatchNorm1d(2).eval()  # a part that was switched to eval mode by hand
        self.example_input_array = torch.randn(4, width)

    def forward(self, x):
        return self.frozen(self.drop(self.layer(x)))

    def training_step(self, batch, batch_idx):
        return self(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Sum(LightningModule):
    """Takes two inputs."""

    def forward(self, a, b):
        return a + 2 * b


def answer(net):
    with torch.no_grad():
        return net.eval()(net.example_input_array)


@given(trained=st.booleans(), method=st.sampled_from(["script", "trace"]))
@settings(max_examples=4, deadline=None)
def test_torchscript_computes_what_the_module_computes_and_leaves_it_as_it_was(trained, method):
    net = Net()
    net.train(trained)
    net.frozen.eval()
    modes = [part.training for part in net.modules()]
    script = net.to_torchscript(method=method)
    assert [part.training for part in net.modules()] == modes
    assert torch.equal(script(net.example_input_array), answer(net))


@pytest.mark.filterwarnings("ignore")
def test_torchscript_inside_and_after_a_run(quick, tmp_path):
    net = Net()
    found = {}

    class Exporting(Net):
        def on_train_end(self):
            found["inside"] = self.to_torchscript(tmp_path / "new" / "net.pt")

    net = Exporting()
    data = torch.utils.data.DataLoader(torch.randn(4, 3), batch_size=2)
    quick(max_steps=1).fit(net, data)
    loaded = torch.jit.load(tmp_path / "new" / "net.pt")
    assert torch.equal(loaded(net.example_input_array), answer(net))
    assert torch.equal(net.to_torchscript()(net.example_input_array), answer(net))
    assert net.trainer is not None  # it was hidden while it was read


def test_torchscript_with_several_inputs_and_by_name():
    a, b = torch.ones(2), torch.full((2,), 3.0)
    net = Sum()
    assert torch.equal(net.to_torchscript(method="trace", example_inputs=(a, b))(a, b), a + 2 * b)
    assert torch.equal(net.to_torchscript(method="trace", example_inputs={"b": b, "a": a})(a=a, b=b), a + 2 * b)


def test_torchscript_may_be_written_to_a_remote_file():
    fsspec = pytest.importorskip("fsspec")
    net = Net()
    net.to_torchscript("memory://exports/net.pt")
    with fsspec.open("memory://exports/net.pt", "rb") as file:
        assert torch.equal(torch.jit.load(io.BytesIO(file.read()))(net.example_input_array), answer(net))


def test_what_cannot_be_exported_is_told():
    net = Net()
    with pytest.raises(ValueError, match=r"method='foo'.*'script' or 'trace'"):
        net.to_torchscript(method="foo")
    net.example_input_array = None
    with pytest.raises(ValueError, match="example_inputs"):
        net.to_torchscript(method="trace")
    with pytest.raises(ConfigurationError, match="ir='x'"):
        net.to_tensorrt(ir="x")
    with pytest.raises(ConfigurationError, match="output_format='x'"):
        net.to_tensorrt(output_format="x")
    with pytest.raises(ConfigurationError, match="contradicts"):
        net.to_tensorrt(ir="ts")


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(MissingPackageError, match="pip install torch-tensorrt"):
        Net().to_tensorrt()
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match="pip install onnx`"):
        Net().to_onnx("net.onnx")


def test_tensorrt_gets_the_module_on_its_gpu(monkeypatch, tmp_path):
    """The package and the GPU stand outside: what they are given is what counts."""
    given_ = {}

    def compiled(module, **options):
        given_.update(options, training=module.training)
        return "compiled"

    def save(module, path, **options):
        given_.update(saved=(module, path), **options)

    package = types.ModuleType("torch_tensorrt")
    package.compile, package.save = compiled, save
    monkeypatch.setitem(sys.modules, "torch_tensorrt", package)
    net = Net()
    with pytest.raises(ConfigurationError, match=r"no GPU|default_device='cpu'"):
        net.to_tensorrt(default_device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(net, "to", lambda device: net)
    monkeypatch.setattr("fulmen.trainer.core.export.move_data_to_device", lambda batch, device: batch)
    assert net.to_tensorrt(tmp_path / "net.ep", enabled_precisions={torch.half}) == "compiled"
    assert given_["ir"] == "default"
    assert given_["enabled_precisions"] == {torch.half}
    assert torch.equal(given_["inputs"][0], net.example_input_array)
    assert given_["saved"] == ("compiled", str(tmp_path / "net.ep"))
    assert (given_["output_format"], given_["retrace"], given_["training"]) == ("exported_program", False, False)
    assert net.training


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("to_buffer", [True, False])
def test_onnx_computes_what_the_module_computes(dynamo, to_buffer, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    net = Net()
    target = io.BytesIO() if to_buffer else tmp_path / "new" / "net.onnx"
    program = net.to_onnx(target, dynamo=dynamo)
    assert (program is not None) == dynamo
    assert net.training
    session = runtime.InferenceSession(target.getvalue() if to_buffer else str(target))
    name = session.get_inputs()[0].name
    [found] = session.run(None, {name: net.example_input_array.numpy()})
    assert torch.allclose(torch.from_numpy(found), answer(net), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_onnx_needs_an_input_and_a_place():
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    net = Net()
    with pytest.raises(ConfigurationError, match="no file_path"):
        net.to_onnx(dynamo=False)
    with pytest.raises(ConfigurationError, match="remote path"):
        net.to_onnx("s3://bucket/net.onnx")
    net.example_input_array = None
    with pytest.raises(ConfigurationError, match="input_sample"):
        net.to_onnx("net.onnx")
    assert net.to_onnx(input_sample=torch.randn(2, 3)) is not None
