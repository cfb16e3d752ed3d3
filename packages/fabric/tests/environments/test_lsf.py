import os
import socket

import pytest

from fulmen.fabric.environments.lsf import LSFEnvironment
from fulmen.fabric.errors import ConfigurationError

# As a task of `jsrun` sees them, in a job of two hosts that compute, with two tasks each.
_TASK = {
    "LSB_JOBID": "1051234",
    "JSM_NAMESPACE_RANK": "3",
    "JSM_NAMESPACE_SIZE": "4",
    "JSM_NAMESPACE_LOCAL_RANK": "1",
    "JSM_NAMESPACE_LOCAL_SIZE": "2",
}
_RANK_FILE = "batch5\n\nh36n08\nh36n08\nh36n09\nh36n09\n"


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    for variable in list(os.environ):
        if variable.startswith(("LSB_", "JSM_", "MASTER_")):
            monkeypatch.delenv(variable)


@pytest.fixture
def rank_file(tmp_path, monkeypatch):
    for variable, value in _TASK.items():
        monkeypatch.setenv(variable, value)
    path = tmp_path / "rankfile"
    path.write_text(_RANK_FILE)
    monkeypatch.setenv("LSB_DJOB_RANKFILE", str(path))
    monkeypatch.setattr(socket, "gethostname", lambda: "h36n09.cluster.org")
    return path


def test_everything_is_read_from_the_task_and_the_rank_file(rank_file, monkeypatch):
    assert LSFEnvironment.detect()
    environment = LSFEnvironment()
    assert environment.creates_processes_externally
    # The first line is the node that launched the job; it does not compute.
    assert (environment.main_address, environment.main_port) == ("h36n08", 10234)
    assert (environment.world_size(), environment.global_rank()) == (4, 3)
    assert (environment.local_rank(), environment.node_rank(), environment.local_world_size()) == (1, 1, 2)
    environment.set_world_size(7)
    environment.set_global_rank(7)
    assert (environment.world_size(), environment.global_rank()) == (4, 3)
    environment.validate_settings(num_devices=2, num_nodes=2)
    monkeypatch.setenv("MASTER_ADDR", "here")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert (environment.main_address, environment.main_port) == ("here", 1)


def test_a_single_host_launches_and_computes(rank_file):
    rank_file.write_text("h36n09\n")
    environment = LSFEnvironment()
    assert (environment.main_address, environment.node_rank()) == ("h36n09", 0)


def test_another_number_of_processes_than_jsrun_started_is_refused(rank_file, monkeypatch):
    for asked in ((4, 2), (4, 1)):
        with pytest.raises(ConfigurationError, match="jsrun started 4, 2 of them on this node"):
            LSFEnvironment().validate_settings(*asked)
    monkeypatch.delenv("JSM_NAMESPACE_LOCAL_SIZE")
    LSFEnvironment().validate_settings(4, 1)


def test_without_a_job_it_is_not_detected(rank_file, monkeypatch):
    monkeypatch.delenv("JSM_NAMESPACE_SIZE")
    assert not LSFEnvironment.detect()
    with pytest.raises(ConfigurationError, match="JSM_NAMESPACE_SIZE, which is not set"):
        LSFEnvironment()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("batch\nother1\nother2\n", "calls itself 'h36n09.cluster.org'"),
        ("batch\n$(reboot)\n", "names the host '\\$\\(reboot\\)'"),
    ],
)
def test_a_rank_file_that_does_not_fit_is_refused(rank_file, content, said):
    rank_file.write_text(content)
    with pytest.raises(ConfigurationError, match=said):
        LSFEnvironment()


def test_a_rank_file_that_is_not_there_is_named(rank_file):
    rank_file.unlink()
    with pytest.raises(ConfigurationError, match=r"cannot be read.*No such file"):
        LSFEnvironment()
