"""Programs that tests look at are run ahead, as many at a time as there are cores, in the order of the tests."""

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def _run(program: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / program[0]), *program[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=170, cwd=folder, env=environment)


@pytest.fixture(scope="session")
def _running(request, tmp_path_factory):
    chosen = [item.callspec.params.get("program") for item in request.session.items if hasattr(item, "callspec")]
    pool = ThreadPoolExecutor(os.cpu_count())
    running: dict[tuple[str, ...], Future[subprocess.CompletedProcess[str]]] = {
        program: pool.submit(_run, program, tmp_path_factory.mktemp("program"))
        for program in dict.fromkeys(filter(None, chosen))
    }
    yield running
    pool.shutdown(cancel_futures=True)


@pytest.fixture
def done(_running, program):
    """How the test's program ended, and what it printed.

    The test has a parameter `program`: a path from the root of the repository, and arguments.
    """
    return _running[program].result()
