import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.launchers import script
from fulmen.fabric.launchers.base import GATHER_CAUSE_S, GATHER_S, TERMINATE_S, UNHEARD_GRACE_S
from fulmen.fabric.launchers.failures import Failure, Weight
from fulmen.fabric.launchers.script import ScriptLauncher, command_again, split_command

_options = st.lists(
    st.sampled_from(
        [["-u"], ["-B"], ["-Bu"], ["-W", "error"], ["-Werror"], ["-X", "dev"], ["--check-hash-based-pycs", "always"]]
    )
).map(lambda words: [word for part in words for word in part])
_targets = st.sampled_from([["-m", "pkg.mod"], ["-c", "print()"], ["train.py"], ["/bin/lightning-cli"]])
_arguments = st.lists(st.sampled_from(["fit", "-m", "--lr=1", "-c", "-"]))


@given(_options, _targets, _arguments)
@example(["-u"], ["-m", "pkg"], ["-c", "config.yaml"])
def test_the_command_line_of_python_is_split_where_the_program_begins(options, target, arguments):
    found, program = split_command(["python", *options, *target, *arguments])
    assert program == target
    # Options are kept, if not in the same words: "-Werror" may become "-W error".
    assert "".join(found) == "".join(options)


@pytest.mark.parametrize("words", [["-um", "pkg"], ["-umpkg"]])
def test_letters_and_the_module_may_be_one_word(words):
    assert split_command(["python", *words, "fit"]) == (["-u"], ["-m", "pkg"])


@pytest.mark.parametrize("argv", [["python"], ["python", "-"], ["python", "-i"]])
def test_without_a_program_there_is_nothing_to_run_again(argv, monkeypatch):
    assert split_command(argv)[1] == []
    monkeypatch.setattr(sys, "orig_argv", argv)
    with pytest.raises(ConfigurationError, match="ddp_notebook"):
        command_again()


def test_a_kernel_that_runs_a_notebook_is_not_run_again(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "ipykernel_launcher", "-f", "kernel.json"])
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    with pytest.raises(ConfigurationError, match="ipykernel_launcher"):
        command_again()


def test_a_process_that_exists_runs_the_function_only(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(script, "command_again", lambda: pytest.fail("started processes"))
    launcher = ScriptLauncher(LightningEnvironment(), 2)
    assert launcher.launch(lambda a, *, b: a + b, 1, b=2) == 3
    launcher.kill(signal.SIGTERM)
    assert not launcher.is_interactive_compatible


def test_one_process_is_already_there(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(script, "command_again", lambda: pytest.fail("started processes"))
    assert ScriptLauncher(LightningEnvironment(), 1).launch(os.getpid) == os.getpid()
    assert "LOCAL_RANK" not in os.environ


# Says its process id first; then does what the first argument says.
_PROGRAM = """
import os, signal, sys, time
import torch, torch.distributed as dist
from fulmen.fabric.collectives.process_group import barrier, init_distributed
from fulmen.fabric.environments.default import LightningEnvironment
from fulmen.fabric.launchers.script import ScriptLauncher

def end_when_asked(launcher, seconds_to_save):
    caught = []
    def catch(number, frame):
        caught.append(number)
        launcher.kill(number)
    signal.signal(signal.SIGTERM, catch)
    barrier()
    os.write(1, b"ready\\n")
    while not caught:
        time.sleep(0.01)
    time.sleep(seconds_to_save)
    os.write(1, f"saved {dist.get_rank()}\\n".encode())
    raise SystemExit(128 + signal.SIGTERM)

def main(what):
    environment = LightningEnvironment()
    launcher = ScriptLauncher(environment, 3 if what == "asked" else 2)
    for _ in range(2):
        launcher.launch(init_distributed, environment, "gloo")
        rank = dist.get_rank()
        total = torch.ones(1)
        dist.all_reduce(total)
        os.write(1, f"{os.getpid()} {rank} {int(total)} {sys.argv[1:]}\\n".encode())
        if what == "asked":
            launcher.launch(end_when_asked, launcher, {0: 2.5, 1: 0.0, 2: 6.0}[rank])
        barrier()
    if what == "late" and rank == 1:
        time.sleep(0.5)
        sys.exit(7)

if __name__ == "__main__":
    main(sys.argv[1])
"""


def _start(folder: Path, *command: str):
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _read_line(process):
    return next(line for line in iter(process.stdout.readline, "") if _is_ours(line))


def _is_ours(line):
    return not line.startswith("[Gloo]")  # torch 2.9 says on standard output that processes have met


def _read_pids(process, num_processes):
    return [int(_read_line(process).split()[0]) for _ in range(num_processes)]


def _are_gone(pids):
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__main__.py").write_text(_PROGRAM)
    return tmp_path


def test_a_package_runs_again_only_once_with_its_arguments_and_rank_zero_takes_the_exit_code_of_the_others(folder):
    with _start(folder, "-m", "pkg", "late", "--lr=1") as process:
        out, err = process.communicate(timeout=150)
    assert process.returncode == 7, err
    assert "ended with exit code 7" in err
    lines = sorted(line.split(maxsplit=1)[1] for line in out.splitlines() if _is_ours(line))
    assert lines == [f"{rank} 2 ['late', '--lr=1']" for rank in (0, 0, 1, 1)]


def test_all_that_is_waited_for_after_a_failure_is_less_than_five_seconds():
    # What rank 0 waits for until it says what happened, the others gone; and then its own end.
    assert GATHER_CAUSE_S + 2 * TERMINATE_S + script._CLEAN_UP_S <= 5
    assert script._END_WITHIN_S + script._TAKE_APART_S <= 5
    assert UNHEARD_GRACE_S + GATHER_S + TERMINATE_S + script._CLEAN_UP_S < 5


def test_what_rank_zero_says_late_goes_before_what_others_said_because_it_had_left():
    children = script._Children(0, 2, None)
    assert children.stop() is None
    echo, cause = Failure(0, 1.0, Weight.ECHO), Failure(0, 2.0, Weight.CAUSE)
    assert children.stop(echo) is echo
    assert children.stop(cause) is cause
    assert children.stop(echo) is cause


def test_processes_that_are_asked_to_end_may_save_first(folder):
    # One at once, one while its launcher would have killed it, one later still: nobody cuts anybody off.
    with _start(folder, "pkg/__main__.py", "asked") as process:
        pids = _read_pids(process, 3)
        assert [_read_line(process) for _ in range(3)] == ["ready\n"] * 3
        process.terminate()
        out, err = process.communicate(timeout=150)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert sorted(filter(_is_ours, out.splitlines())) == ["saved 0", "saved 1", "saved 2"]
    assert "failed first" not in err
    assert _are_gone(pids)


def _fork_rank_zero(monkeypatch, output: Path, others: str, num_processes: int = 2, *, hears: bool = False) -> int:
    """A process that runs for ever as rank 0, while the others run a program that needs no torch."""
    command = [sys.executable, "-I", "-S", "-u", "-c", f"import os, signal, time; print(os.getpid()); {others}"]
    monkeypatch.setattr(script, "command_again", lambda: command)
    output.touch()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, _leave if hears else signal.SIG_DFL)
        os.environ["RANK_ZERO"] = str(os.getpid())
        with open(output, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            ScriptLauncher(LightningEnvironment(), num_processes).launch(time.sleep, 600)
        except SystemExit:
            time.sleep(300)  # Python ends, and takes its time
        finally:
            os._exit(99)
    return pid


def _leave(number, frame):
    raise SystemExit(128 + number)


def test_a_request_that_a_failure_has_led_to_does_not_hide_it(folder, monkeypatch):
    # Rank 2 is ended because rank 1 is gone, and hands that on, as a run does that can be stopped in any process.
    ready = str(folder / "ready")
    two = "signal.signal(signal.SIGTERM, lambda *_: os.kill(int(os.environ['RANK_ZERO']), signal.SIGTERM))"
    one = f"[time.sleep(0.02) for _ in iter(lambda: os.path.exists({ready!r}), True)]; os.kill(os.getpid(), 9)"
    others = f"exec({one!r} if os.environ['RANK'] == '1' else {two!r}); open({ready!r}, 'w'); time.sleep(600)"
    pid = _fork_rank_zero(monkeypatch, folder / "output", others, num_processes=3, hears=True)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGKILL
    output = (folder / "output").read_text()
    assert "Rank 1 of 3 failed first" in output
    assert "killed by SIGKILL" in output


def test_a_killed_process_ends_all_and_gives_its_exit_code(folder, monkeypatch):
    # Rank 2 can neither be asked to end nor ends by itself.
    rank_one = "os.environ['RANK'] == '1' and os.kill(os.getpid(), signal.SIGKILL)"
    others = f"signal.signal(signal.SIGTERM, signal.SIG_IGN); {rank_one}; time.sleep(600)"
    pid = _fork_rank_zero(monkeypatch, folder / "output", others, num_processes=3)
    _, status = os.waitpid(pid, 0)
    output = (folder / "output").read_text()
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGKILL
    assert "Rank 1 of 3 failed first" in output
    assert "killed by SIGKILL" in output
    assert _are_gone([int(line) for line in output.splitlines() if line.isdecimal()])


def test_a_process_that_is_ended_before_it_listens_costs_the_others_no_time_to_save(folder, monkeypatch):
    monkeypatch.setattr(script, "GRACE_S", 90.0)
    began_s = time.monotonic()
    pid = _fork_rank_zero(monkeypatch, folder / "output", "os.kill(os.getpid(), signal.SIGTERM)")
    _, status = os.waitpid(pid, 0)
    assert time.monotonic() - began_s < 80
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGTERM
    assert "Rank 1 of 2 failed first" in (folder / "output").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes look for their parent once a second")
def test_when_rank_zero_is_terminated_nothing_is_left_running(folder, monkeypatch):
    pid = _fork_rank_zero(monkeypatch, folder / "output", "time.sleep(60)")
    deadline = time.monotonic() + 60
    while not (folder / "output").read_text().endswith("\n") and time.monotonic() < deadline:
        time.sleep(0.02)
    pids = [int((folder / "output").read_text())]
    assert not _are_gone(pids)
    os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
    deadline = time.monotonic() + 50
    while not _are_gone(pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _are_gone(pids)
