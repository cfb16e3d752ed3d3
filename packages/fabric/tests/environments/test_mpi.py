import os
import shutil
import subprocess
import sys
import types
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.environments.mpi import MPIEnvironment, place_among
from fulmen.fabric.errors import ConfigurationError, MissingPackageError


class World:
    """The part of an MPI communicator that is asked, for one process of several; what it gathers is known before."""

    def __init__(self, rank, hosts):
        self.rank, self.hosts = rank, hosts

    def Get_rank(self):  # noqa: N802
        return self.rank

    def Get_size(self):  # noqa: N802
        return len(self.hosts)

    def allgather(self, mine):
        assert isinstance(mine, str)
        return self.hosts

    def bcast(self, value, root):
        assert (value is not None) == (self.rank == root)
        return 4321


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for variable in list(os.environ):
        if variable.startswith(("OMPI_", "PMI", "MPI_", "MV2_", "MASTER_")):
            monkeypatch.delenv(variable)
    for name in ("mpi4py", "mpi4py.MPI"):
        monkeypatch.setitem(sys.modules, name, None)


def _started_by_mpi(monkeypatch, rank, hosts):
    package = types.ModuleType("mpi4py")
    mpi = types.ModuleType("mpi4py.MPI")
    mpi.COMM_WORLD = World(rank, hosts)
    monkeypatch.setitem(sys.modules, "mpi4py", package)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", mpi)


def test_everything_is_asked_of_mpi(monkeypatch):
    _started_by_mpi(monkeypatch, 3, ["one", "two", "one", "two"])
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert MPIEnvironment.detect()
    environment = MPIEnvironment()
    assert environment.creates_processes_externally
    assert (environment.main_address, environment.main_port) == ("one", 4321)
    assert (environment.world_size(), environment.global_rank()) == (4, 3)
    assert (environment.local_rank(), environment.node_rank(), environment.local_world_size()) == (1, 1, 2)
    environment.set_world_size(7)
    environment.set_global_rank(7)
    assert (environment.world_size(), environment.global_rank()) == (4, 3)
    environment.validate_settings(num_devices=2, num_nodes=2)
    for asked in ((4, 1), (2, 1), (1, 4)):
        with pytest.raises(ConfigurationError, match=r"4 on 2 host\(s\), 2 of them on this one"):
            environment.validate_settings(*asked)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert (environment.main_address, environment.main_port) == ("10.0.0.1", 1)


def test_rank_zero_offers_a_free_port(monkeypatch):
    _started_by_mpi(monkeypatch, 0, ["one"])
    assert MPIEnvironment().main_port == 4321  # `World.bcast` has seen that only rank zero offers one


def test_one_process_alone_is_not_detected(monkeypatch):
    _started_by_mpi(monkeypatch, 0, ["one"])
    monkeypatch.setenv("PMI_SIZE", "1")
    assert not MPIEnvironment.detect()


def test_without_a_launcher_mpi_is_not_started(monkeypatch):
    assert not MPIEnvironment.detect()
    for name in ("mpi4py", "mpi4py.MPI"):
        monkeypatch.delitem(sys.modules, name)
    assert not MPIEnvironment.detect()
    assert "mpi4py" not in sys.modules


def test_the_package_is_needed(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    assert not MPIEnvironment.detect()
    with pytest.raises(MissingPackageError, match="pip install mpi4py"):
        MPIEnvironment()


@given(st.lists(st.sampled_from("abc"), min_size=1))
def test_the_places_on_each_host_are_numbered_without_gaps(hosts):
    places = [place_among(hosts, rank) for rank in range(len(hosts))]
    for host, count in Counter(hosts).items():
        mine = [place for place, on in zip(places, hosts, strict=True) if on == host]
        assert [local_rank for local_rank, _, _ in mine] == list(range(count))
        assert {size for _, size, _ in mine} == {count}
    assert sorted({node for _, _, node in places}) == list(range(len(set(hosts))))


# Each process writes a file of its own: lines of several processes on one pipe can mix.
_PROGRAM = """
import sys
from pathlib import Path
from fulmen.fabric.environments.mpi import MPIEnvironment
assert MPIEnvironment.detect()
environment = MPIEnvironment()
environment.validate_settings(2, 1)
seen = (environment.local_rank(), environment.node_rank(), environment.main_port)
Path(sys.argv[1], f"{environment.global_rank()}.txt").write_text(" ".join(map(str, seen)))
"""


def test_under_a_real_mpiexec_all_processes_agree(tmp_path):
    mpiexec = shutil.which("mpiexec", path=os.path.dirname(sys.executable)) or shutil.which("mpiexec")
    if mpiexec is None or subprocess.run([sys.executable, "-c", "import mpi4py"], capture_output=True).returncode:
        pytest.skip("no mpi4py with an mpiexec here")
    command = [mpiexec, "-n", "2", sys.executable, "-c", _PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.txt", "1.txt"]
    first, second = ((tmp_path / f"{rank}.txt").read_text().split() for rank in range(2))
    assert (first[:2], second[:2]) == (["0", "0"], ["1", "0"])
    assert first[2] == second[2]
