from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no failure.
settings.register_profile("fulmen", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fulmen")
# What is garbage at a fork is the parent's: a child that collects a store waits for its thread, which it does not have.
os.register_at_fork(after_in_child=gc.freeze)


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """The address of an S3 bucket, on a server of this process that is reached over loopback."""
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"
    server.stop()
