import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from fulmen.fabric import command
from fulmen.fabric.accelerators.catalog import ACCELERATOR_REGISTRY
from fulmen.fabric.checkpoint_io.sharded import save_sharded
from fulmen.fabric.precision.catalog import PRECISIONS
from fulmen.fabric.run_flags import VARIABLE
from fulmen.fabric.strategies.catalog import STRATEGY_REGISTRY

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


class Became(Exception):
    """This process would be the script now."""


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What would be executed, for some words of a command line."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()

    def execve(path, words, environment):
        raise Became(words, environment)

    monkeypatch.setattr(os, "execve", execve)

    def start(*words):
        with pytest.raises(Became) as raised:
            command.main(["run", *words])
        return raised.value.args

    return start


def refused(capsys, *words):
    with pytest.raises(SystemExit) as raised:
        command.main(words)
    said = capsys.readouterr()
    assert said.out == ""
    return raised.value.code, said.err


@pytest.mark.parametrize(
    ("words", "theirs", "flags"),
    [
        (["train.py"], [], "{}"),
        (["train.py", "--devices", "2"], [], '{"devices": "2"}'),
        (["--devices=0,1", "train.py", "--lr", "-1", "x"], ["--lr", "-1", "x"], '{"devices": "0,1"}'),
        (["train.py", "--lr=1", "--precision", "16", "-h"], ["--lr=1", "-h"], '{"precision": "16"}'),
        (["train.py", "--", "--devices", "2"], ["--devices", "2"], "{}"),
        (["--strategy", "ddp", "--", "train.py", "--", "x"], ["--", "x"], '{"strategy": "ddp"}'),
        (["train.py", "--num_nodes", "1", "--device", "2"], ["--device", "2"], '{"num_nodes": 1}'),
    ],
)
def test_every_word_is_for_fabric_or_for_the_script(started, words, theirs, flags):
    executed, environment = started(*words)
    assert executed == [sys.executable, "train.py", *theirs]
    assert environment[VARIABLE] == flags


def test_several_machines_are_told_where_to_meet(started):
    _, environment = started("train.py", "--num-nodes", "2", "--node_rank", "1", "--main-address", "node0")
    assert [environment[name] for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")] == ["1", "node0", "29400"]


def test_one_machine_takes_a_free_port_unless_told(started, monkeypatch):
    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert "MASTER_PORT" not in started("train.py")[1]
    assert started("train.py", "--main_port=1234")[1]["MASTER_PORT"] == "1234"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "required: command"),
        (["walk"], "'walk'"),
        (["run"], "required: SCRIPT"),
        (["run", "--lr", "1", "train.py"], "no option --lr"),
        (["run", "nowhere.py"], "nowhere.py was not found"),
        (["run", "x", "--devices", "0"], "'0' names no devices"),
        (["run", "x", "--devices", "two"], "'two' names no devices"),
        (["run", "x", "--devices"], "--devices: expected one argument"),
        (["run", "x", "--strategy", "foo"], "'foo'"),
        (["run", "x", "--accelerator", "abacus"], "'abacus'"),
        (["run", "x", "--precision", "8"], "'8'"),
        (["run", "x", "--num-nodes", "0"], "'0' is no number from 1"),
        (["run", "x", "--main-port", "70000"], "no number from 1 to 65535"),
        (["run", ".", "--num-nodes", "2", "--node-rank", "2"], "--node-rank 2 is none of --num-nodes 2"),
        (["consolidate"], "required: FOLDER"),
    ],
)
def test_a_wrong_call_is_answered_at_once(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = refused(capsys, *words)
    assert code == 2
    assert text.startswith("usage: ")
    assert says in text


def test_the_choices_are_those_that_fabric_knows():
    assert set(command.PRECISIONS) == set(PRECISIONS)
    assert {*command.ACCELERATORS} - {"auto", "gpu", "tpu"} <= {*ACCELERATOR_REGISTRY.names()}
    assert {*command.STRATEGIES} <= {*STRATEGY_REGISTRY.names()}


def run(*words, cwd: Path, **variables) -> subprocess.CompletedProcess[str]:
    done = [sys.executable, "-m", "fulmen.fabric.command", *words]
    return subprocess.run(done, capture_output=True, text=True, timeout=120, cwd=cwd, env={**ENVIRONMENT, **variables})


@pytest.mark.parametrize("words", [[], ["run"], ["consolidate"]])
def test_help_fits_a_terminal(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as raised:
        command.main([*words, "--help"])
    assert raised.value.code == 0
    assert all(len(line) <= 80 for line in capsys.readouterr().out.splitlines())


def test_reading_the_command_line_loads_no_torch():
    check = "import sys, fulmen.fabric.command; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_a_script_runs_in_two_processes_and_its_error_is_the_last_word(tmp_path):
    script = """
        import sys
        from fulmen.fabric import Fabric

        fabric = Fabric()  # without launch(): the command is enough
        ranks = fabric.all_gather(fabric.global_rank).tolist()
        fabric.launch()  # and may be there
        fabric.print(ranks, fabric.strategy.precision.precision, sys.argv[1:])
        if fabric.global_rank == 1:
            raise ValueError("the second one fails")
        fabric.barrier()
    """
    (tmp_path / "train.py").write_text(textwrap.dedent(script))
    done = run("run", "train.py", "--devices", "2", "--precision=bf16-mixed", "--lr", "1", cwd=tmp_path)
    said = [line for line in done.stdout.splitlines() if not line.startswith("[Gloo]")]  # as torch 2.9 does
    assert said == ["[0, 1] bf16-mixed ['--lr', '1']"]
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: the second one fails\n")
    assert done.stderr.count("Traceback") == 1
    assert "Rank 1 of 2 failed first; the other process was ended because of it." in done.stderr
    assert "command.py" not in done.stderr


def test_the_exit_code_and_the_traceback_are_those_of_the_script(tmp_path):
    (tmp_path / "train.py").write_text("import sys\nsys.exit(7)\n")
    assert run("run", "train.py", cwd=tmp_path).returncode == 7
    (tmp_path / "train.py").write_text("1 / 0\n")
    done = run("run", "train.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "fulmen" not in done.stderr
    assert done.stderr.count("File ") == 1


def test_a_sharded_checkpoint_becomes_one_file(tmp_path, capsys):
    state = {"model": {"weight": torch.arange(4.0)}, "epoch": 3}
    save_sharded(tmp_path / "step.ckpt", state)
    for words, file in (([], "step.ckpt.consolidated"), (["--output_file", str(tmp_path / "one.pt")], "one.pt")):
        with pytest.raises(SystemExit) as raised:
            command.main(["consolidate", f"{tmp_path}/step.ckpt/", *words])
        assert raised.value.code == 0
        assert capsys.readouterr().out == f"{tmp_path / file}\n"
        loaded = torch.load(tmp_path / file)
        assert loaded["epoch"] == 3
        assert torch.equal(loaded["model"]["weight"], state["model"]["weight"])


def test_a_folder_that_cannot_be_read_is_named_without_a_traceback(tmp_path, capsys):
    code, text = refused(capsys, "consolidate", str(tmp_path / "nowhere"))
    assert code == 1
    assert text.startswith("fulmen-fabric consolidate: ")
    assert "nowhere" in text
    assert list(tmp_path.iterdir()) == []
