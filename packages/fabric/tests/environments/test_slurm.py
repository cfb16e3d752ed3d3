import contextlib
import os
import shutil
import signal
import sys
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.environments.slurm import SLURMEnvironment, expand_counts
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError, MisconfigurationException
from fulmen.fabric.rank_zero import PossibleUserWarning, rank_zero_only

# As a task of `srun` sees them, in a job of two nodes with two tasks each (SLURM 23.11).
_STEP = {
    "SLURM_JOB_ID": "4711234",
    "SLURM_JOB_NAME": "train.sh",
    "SLURM_JOB_NODELIST": "gpu[007-008]",
    "SLURM_NODELIST": "gpu[007-008]",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    for variable in list(os.environ):
        if variable.startswith(("SLURM_", "MASTER_")):
            monkeypatch.delenv(variable)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    yield
    rank_zero_only.rank = None


@pytest.fixture
def step(monkeypatch):
    for variable, value in _STEP.items():
        monkeypatch.setenv(variable, value)
    return SLURMEnvironment()


def test_everything_is_read_from_the_task(step):
    assert SLURMEnvironment.detect()
    assert step.creates_processes_externally
    assert (step.main_address, step.main_port) == ("gpu007", 15000 + 1234)
    assert (step.world_size(), step.global_rank(), step.local_rank(), step.node_rank()) == (4, 3, 1, 1)
    assert step.local_world_size() == 2
    assert (step.job_name(), step.job_id()) == ("train.sh", 4711234)
    step.set_world_size(7)
    step.set_global_rank(7)
    assert (step.world_size(), step.global_rank()) == (4, 3)
    step.validate_settings(num_devices=2, num_nodes=2)
    step.teardown()


def test_steps_that_share_a_node_meet_at_different_ports(step, monkeypatch):
    first = step.main_port
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    assert step.main_port == first + 1
    monkeypatch.setenv("SLURM_JOB_ID", "9999")
    assert 15000 <= step.main_port < 25000
    monkeypatch.setenv("MASTER_PORT", "1234")
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    assert (step.main_address, step.main_port) == ("10.0.0.1", 1234)


def test_without_nodes_and_job_it_is_this_machine():
    environment = SLURMEnvironment()
    assert (environment.main_address, environment.main_port, environment.job_id()) == ("127.0.0.1", 12910, None)
    assert environment.local_world_size() is None
    assert not SLURMEnvironment.detect()
    with pytest.raises(ConfigurationError, match=r"SLURM_PROCID is not set.*srun"):
        environment.global_rank()


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_a_job_in_which_somebody_types_is_not_detected(step, monkeypatch, name):
    monkeypatch.setenv("SLURM_JOB_NAME", name)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not SLURMEnvironment.detect()
    assert step.job_id() is None
    step.validate_settings(num_devices=7, num_nodes=3)


def test_a_program_that_srun_could_have_started_is_told_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(sys, "argv", ["jobs/train.py"])
    with pytest.warns(PossibleUserWarning, match="`srun python train.py"):
        assert not SLURMEnvironment.detect()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SLURMEnvironment.detect()


def test_the_job_may_be_put_back_into_the_queue_by_words_and_not_by_a_line_for_a_shell(step, monkeypatch):
    assert step.auto_requeue
    assert step.requeue_signal is signal.SIGUSR1
    other = SLURMEnvironment(auto_requeue=False, requeue_signal=signal.SIGHUP)
    assert (other.auto_requeue, other.requeue_signal) == (False, signal.SIGHUP)
    assert step.requeue_command() == ["scontrol", "requeue", "4711234"]
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "5")
    assert step.requeue_command() == ["scontrol", "requeue", "77_5"]
    with pytest.raises(ArgumentTypeError, match="requeue_signal='SIGUSR1'"):
        SLURMEnvironment(requeue_signal="SIGUSR1")


# NUL cannot be in an environment variable.
_HOSTILE = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30) | st.sampled_from(
    ["1; rm -rf /", "$(reboot)", "`id`", "../../etc", "1\n2", "-1", "1_2", "٣", " 7", "0x10", "9" * 40]
)


@given(_HOSTILE, _HOSTILE, _HOSTILE)
def test_whatever_the_ids_are_only_numbers_come_out(job, array, task):
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in {"JOB": job, "ARRAY_JOB": array, "ARRAY_TASK": task, "STEP": task}.items():
            patch.setenv(f"SLURM_{variable}_ID", value)
        environment = SLURMEnvironment()
        assert environment.job_id() is None or environment.job_id() >= 0
        assert 0 < environment.main_port < 2**16
        command = environment.requeue_command()
        if command is not None:
            assert command[:2] == ["scontrol", "requeue"]
            assert command[2].replace("_", "", 1).isascii()
            assert command[2].replace("_", "", 1).isdigit()
            assert len(command) == 3


@given(_HOSTILE)
def test_whatever_the_node_list_is_only_a_host_comes_out(nodes):
    with contextlib.suppress(ConfigurationError):
        host = SLURMEnvironment.resolve_root_node_address(nodes)
        assert host
        assert not host.startswith("-")
        assert not set(host) & set(" /\\$`;|&<>()'\"\n*?![]{}~#")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("alpha", "alpha"),
        ("alpha,beta,gamma", "alpha"),
        ("alpha beta gamma", "alpha"),
        ("10.1.2.3", "10.1.2.3"),
        ("10.1.2.[100-110]", "10.1.2.100"),
        ("host[22]", "host22"),
        ("host[22-15]", "host22"),
        ("host[01-04,07],login[1-2]", "host01"),
        ("rack[2-3]node[07,11-13],x", "rack2node07"),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_the_first_node_of_a_list(nodes, first):
    assert SLURMEnvironment.resolve_root_node_address(nodes) == first


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 5)), min_size=1))
def test_counts_are_written_short_and_read_long(runs):
    text = ",".join(f"{count}(x{times})" if times > 1 else str(count) for count, times in runs)
    assert expand_counts(text, "X") == [count for count, times in runs for _ in range(times)]


@pytest.mark.parametrize("text", ["", "2(x)", "two", "2(x9999999)", "-1", "2;3"])
def test_a_list_that_is_none_is_named(text):
    with pytest.raises(ConfigurationError, match=r"variable X is "):
        expand_counts(text, "X")


@pytest.mark.parametrize(
    ("variables", "asked", "said"),
    [
        ({}, (3, 2), ["devices=3", "2 task(s) on a node", "--ntasks-per-node=3"]),
        ({}, (2, 1), ["num_nodes=1", "2 node(s)", "num_nodes=2"]),
        ({"SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_NTASKS": "3"}, (2, 2), ["1 task(s) on a node"]),
        ({"SLURM_NTASKS": "2"}, (2, 2), ["2 task(s) in all"]),
        ({"SLURM_NNODES": "two"}, (2, 2), ["SLURM_NNODES is 'two'"]),
    ],
)
def test_another_number_of_processes_than_slurm_runs_is_refused(step, monkeypatch, variables, asked, said):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as raised:
        step.validate_settings(*asked)
    assert all(words in str(raised.value) for words in said), raised.value
    assert str(raised.value).count(". ") >= 2


def test_tasks_without_a_number_per_node_are_refused(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(RuntimeError, match="--ntasks-per-node=2") as raised:
        SLURMEnvironment().validate_settings(num_devices=2, num_nodes=1)
    assert isinstance(raised.value, MisconfigurationException)


def test_a_batch_script_without_srun_is_told_both_ways_out(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    with pytest.raises(ConfigurationError, match=r"by `srun`.*LightningEnvironment"):
        SLURMEnvironment().validate_settings(num_devices=2, num_nodes=1)
