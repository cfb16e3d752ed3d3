import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import nn

from fulmen.trainer.core.download import download, is_url, kept_path
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import CheckpointDamagedError, CheckpointError, CheckpointNotFoundError


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Serves what is put into `files`, and notes what it was asked."""
    files, asked = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content, length = files.get(self.path, (None, None))
            self.send_response({None: 404, "forbidden": 403}.get(content, 200))
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content if isinstance(content, bytes) else b"")

        def log_message(self, *_):
            pass

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    running.files, running.asked, running.url = files, asked, f"http://127.0.0.1:{running.server_port}"
    yield running
    running.shutdown()
    running.server_close()


def test_a_file_is_fetched_once_and_kept_under_its_whole_address(server):
    server.files["/a/net.ckpt"] = b"one", 3
    server.files["/b/net.ckpt?v=2"] = b"two", 3
    first, second = f"{server.url}/a/net.ckpt", f"{server.url}/b/net.ckpt?v=2"
    assert download(first).read_bytes() == download(first).read_bytes() == b"one"
    assert download(second).read_bytes() == b"two"
    assert server.asked == ["/a/net.ckpt", "/b/net.ckpt?v=2"]
    assert kept_path(first).name.endswith("-net.ckpt")
    assert {path.name for path in kept_path(first).parent.iterdir()} == {kept_path(first).name, kept_path(second).name}


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, CheckpointNotFoundError, "answered 404"),
        (("forbidden", None), CheckpointError, "answered 403"),
        ((b"half", 8), CheckpointDamagedError, "4 of 8 bytes"),
    ],
)
def test_what_does_not_come_whole_is_not_kept(content, error, words, server):
    if content is not None:
        server.files["/net.ckpt"] = content
    url = f"{server.url}/net.ckpt"
    with pytest.raises(error, match=words):
        download(url)
    folder = kept_path(url).parent
    assert not folder.exists() or list(folder.iterdir()) == []


def test_a_digest_in_the_name_is_checked(server):
    digest = hashlib.sha256(b"true").hexdigest()[:8]
    for content, name in ((b"true", "good"), (b"lies", "bad")):
        server.files[f"/{name}-{digest}.pt"] = content, 4
    assert download(f"{server.url}/good-{digest}.pt").read_bytes() == b"true"
    with pytest.raises(CheckpointDamagedError, match=f"begins with {digest}"):
        download(f"{server.url}/bad-{digest}.pt")


def test_a_server_that_is_not_there_is_told(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(CheckpointError, match="cannot be reached"):
        download(f"{server.url}/net.ckpt")


def test_which_paths_are_fetched():
    assert is_url("http://host/a")
    assert is_url("HTTPS://host/a")
    assert not any(is_url(path) for path in ("a.ckpt", "s3://bucket/a", "file:///a", None, 3))


class Net(LightningModule):
    def __init__(self, width=2):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(width, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_module_and_a_run_come_from_a_url_and_run_no_code_from_it(server, quick, tmp_path):
    net = Net(width=3)
    trainer = quick()
    trainer.fit(net, torch.utils.data.DataLoader(torch.ones(2, 3)))
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    content = (tmp_path / "net.ckpt").read_bytes()
    server.files["/net.ckpt"] = content, len(content)
    url = f"{server.url}/net.ckpt"
    assert torch.equal(Net.load_from_checkpoint(url).layer.weight, net.layer.weight)

    again = quick(max_epochs=2)
    again.fit(Net(width=3), torch.utils.data.DataLoader(torch.ones(2, 3)), ckpt_path=url)
    assert again.global_step == 4
    assert again.ckpt_path == str(kept_path(url))
    assert server.asked == ["/net.ckpt"]

    torch.save({"state_dict": {}, "evil": print}, tmp_path / "evil.ckpt")
    content = (tmp_path / "evil.ckpt").read_bytes()
    server.files["/evil.ckpt"] = content, len(content)
    with pytest.raises(CheckpointError, match="weights_only"):
        Net.load_from_checkpoint(f"{server.url}/evil.ckpt")


def test_a_module_comes_from_a_remote_file_system(quick):
    pytest.importorskip("fsspec")
    net = Net(width=4)
    trainer = quick()
    trainer.fit(net, torch.utils.data.DataLoader(torch.ones(2, 4)))
    trainer.save_checkpoint("memory://runs/net.ckpt")
    assert torch.equal(Net.load_from_checkpoint("memory://runs/net.ckpt").layer.weight, net.layer.weight)
