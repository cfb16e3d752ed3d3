"""Can a module serve requests? Asked before it is trained, by serving one."""

import json
import threading
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fulmen.fabric.optional_packages import require
from fulmen.fabric.rank_zero import rank_zero_info, rank_zero_warn
from fulmen.fabric.trees import move_data_to_device
from fulmen.trainer._typing import Trainer
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.errors import ConfigurationError

Payload = dict[str, Any]
Answer = Callable[[Payload], Payload]


class ServableModule(ABC, nn.Module):
    """What a module adds to serve requests; a class derives from it and from LightningModule.

    A request is a dict that JSON can hold. Its items become tensors, the tensors go through `serve_step`, and the
    tensors that come out become the items of the answer.
    """

    @abstractmethod
    def configure_payload(self) -> Payload:
        """A request to try with: `{"body": {name: value}}`."""

    @abstractmethod
    def configure_serialization(self) -> tuple[dict[str, Callable[..., Any]], dict[str, Callable[..., Any]]]:
        """How items of a request become arguments of `serve_step`, and how its results become items of an answer.

        Returns:
            Two dicts of functions, by the names of the items.
        """

    @abstractmethod
    def serve_step(self, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        """The results for one request, by name; called with the items by name."""

    @abstractmethod
    def configure_response(self) -> Payload:
        """What the answer to `configure_payload()` must be, for whatever weights."""


class ServableModuleValidator(Callback):
    """Before training: serves the module's own request once over HTTP, and looks at the answer.

    Args:
        optimization: None: the module as it is. No other way is known.
        server: "fastapi", or "http": the one of Python itself, without further packages.
        host, port: Where it listens; port 0 is any that is free.
        timeout: Seconds that server and answer may take.
        exit_on_failure: Is a failure an error, or only worth a warning?

    Raises:
        ConfigurationError: For an unknown `server`, or any `optimization`.
        MissingPackageError: If the packages of the server are not installed.
    """

    def __init__(
        self,
        optimization: Literal["trace", "script", "onnx", "tensorrt"] | None = None,
        server: Literal["fastapi", "http", "ml_server", "torchserve", "sagemaker"] = "fastapi",
        host: str = "127.0.0.1",
        port: int = 8080,
        timeout: int = 20,
        exit_on_failure: bool = True,
    ) -> None:
        if optimization is not None:
            raise ConfigurationError(
                f"ServableModuleValidator(optimization={optimization!r}) cannot be served. The module is tried as it"
                " is. Leave optimization out; to_onnx() and to_torchscript() make files that you can try."
            )
        if server not in ("fastapi", "http"):
            raise ConfigurationError(
                f"ServableModuleValidator(server={server!r}) is unknown. Requests are served over HTTP by FastAPI, or"
                " by Python itself. Pass 'fastapi' or 'http'."
            )
        if server == "fastapi":
            for package in ("fastapi", "uvicorn"):
                require(package, purpose="ServableModuleValidator(server='fastapi')")
        self.optimization = optimization
        self.server = server
        self.host = host
        self.port = port
        self.timeout = timeout
        self.exit_on_failure = exit_on_failure
        self.resp: Payload | None = None
        self._successful: bool | None = None

    @property
    def successful(self) -> bool | None:
        """Was the answer right? None before it was tried."""
        return self._successful

    def state_dict(self) -> dict[str, Any]:
        """What came out, and of what."""
        return {"successful": self.successful, "optimization": self.optimization, "server": self.server}

    def on_train_start(self, trainer: Trainer, servable_module: LightningModule) -> None:
        """Tries it, on the first process.

        Raises:
            ConfigurationError: If the module cannot be served here, or the answer is wrong or late.
        """
        name = type(servable_module).__name__
        if not isinstance(servable_module, ServableModule):
            raise ConfigurationError(
                f"ServableModuleValidator was given to the Trainer of {name}, which serves nothing."
                " The callback sends it a request. Derive the module from fulmen.trainer.serve.ServableModule too."
            )
        if getattr(trainer.strategy, "shards_parameters", False):
            raise ConfigurationError(
                f"ServableModuleValidator cannot try a module under {type(trainer.strategy).__name__}. No process holds"
                " the whole module there, and a request is answered by one. Try it on one device."
            )
        if not trainer.is_global_zero:
            return
        modes = [(part, part.training) for part in servable_module.modules()]
        servable_module.eval()
        try:
            problem = self._try(servable_module)
        finally:
            for part, training in modes:
                part.training = training
        self._successful = problem is None
        if problem is None:
            rank_zero_info(f"{name} can serve requests.")
            return
        message = (
            f"{name} cannot serve its own request: {problem}. ServableModuleValidator sent what configure_payload()"
            " returned. Correct serve_step, configure_serialization or configure_response."
        )
        if self.exit_on_failure:
            raise ConfigurationError(message)
        rank_zero_warn(message)

    def _try(self, module: Any) -> str | None:
        """What is wrong, if anything."""
        served, expected = _answer_of(module), module.configure_response()
        run = _fastapi if self.server == "fastapi" else _http
        with run(served, self.host, self.port, self.timeout) as url:
            body = json.dumps(module.configure_payload()).encode()
            request = urllib.request.Request(f"{url}/serve", body, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    self.resp = json.load(answer)
            except urllib.error.HTTPError as error:
                return f"the server answered {error.code}, {error.read().decode(errors='replace')[:500]}"
            except (urllib.error.URLError, TimeoutError) as error:
                return f"no answer came within {self.timeout} s ({error})"
        if self.resp != expected:
            return f"the answer is {self.resp}, and configure_response() says {expected}"
        return None


def _answer_of(module: Any) -> Answer:
    """The function from request to answer."""
    deserializers, serializers = module.configure_serialization()

    def answer(payload: Payload) -> Payload:
        items = {name: deserializers[name](value) for name, value in payload["body"].items()}
        with torch.inference_mode():
            results = module.serve_step(**move_data_to_device(items, module.device))
        if not isinstance(results, dict):
            raise TypeError(f"serve_step returned a {type(results).__name__}, and no dict of names and tensors")
        return {name: serializers[name](value) for name, value in move_data_to_device(results, "cpu").items()}

    return answer


@contextmanager
def _http(answer: Answer, host: str, port: int, timeout: float) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, body = 200, json.dumps(answer(payload))
            except Exception as error:
                status, body = 500, f"{type(error).__name__}: {error}"
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are no news."""

    server = ThreadingHTTPServer((host, port), Handler)
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def _fastapi(answer: Answer, host: str, port: int, timeout: float) -> Iterator[str]:
    fastapi: Any = require("fastapi", purpose="ServableModuleValidator(server='fastapi')")
    uvicorn: Any = require("uvicorn", purpose="ServableModuleValidator(server='fastapi')")
    app = fastapi.FastAPI()

    @app.get("/ping")  # type: ignore[untyped-decorator]  # FastAPI is optional, and not known here
    def ping() -> bool:
        return True

    @app.post("/serve")  # type: ignore[untyped-decorator]  # as above
    def serve(payload: dict[str, Any]) -> Any:
        try:
            return answer(payload)
        except Exception as error:
            return fastapi.responses.PlainTextResponse(f"{type(error).__name__}: {error}", status_code=500)

    server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + timeout
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise ConfigurationError(
                    f"ServableModuleValidator(host={host!r}, port={port}) got no server up within {timeout} s."
                    " The port may be taken. Pass another port, or a longer timeout."
                )
            time.sleep(0.01)
        yield f"http://{host}:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout)
