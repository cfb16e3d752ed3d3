import json
import subprocess
import sys

import pytest

from fulmen.fabric.command import main

PROGRAM = """
import torch
from torch import nn

def make():
    return {"module": nn.Linear(1000000, 1000000), "batch": torch.zeros(2, 1000000)}

def alone():
    return nn.Linear(4, 4)

def wrong():
    return {"modul": nn.Linear(4, 4)}

number = 3
"""


@pytest.fixture
def target(tmp_path):
    (tmp_path / "of_the_user.py").write_text(PROGRAM)
    return str(tmp_path / "of_the_user.py")


def run(capsys, *arguments):
    path = list(sys.path)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["plan", *arguments])
    finally:
        sys.path[:] = path
        sys.modules.pop("of_the_user", None)
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def test_a_module_larger_than_any_machine_is_planned(capsys, target):
    # Four terabytes of parameters.
    code, out, _ = run(capsys, f"{target}:make", "--devices=8", "--num_nodes", "128", "--strategy", "fsdp", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["num_parameters"] == 10**12 + 10**6
    assert found["memory_bytes"]["parameters"] == pytest.approx(4e12 / 1024, rel=0.01)
    assert found["world_size"] == 1024


def test_a_table_is_printed(capsys, target):
    code, out, _ = run(capsys, f"{target}:alone", "--num-samples", "10", "--batch-size", "2", "--accumulate", "2")
    assert code == 0
    assert out.startswith("strategy         SingleDeviceStrategy, precision 32-true\n")
    assert "steps per epoch  3" in out
    assert "not known, as no batch was tried" in out, "nobody said that there are none"
    assert "no collectives" not in out


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("{}:number", "is no function"),
        ("{}:nothing", "is no function"),
        ("{}:wrong", "the keys 'modul'"),
        ("{}", "names no function"),
        ("nowhere.py:make", "cannot be imported"),
        ("not_there.at_all:make", "cannot be imported"),
    ],
)
def test_mistakes_are_answered_in_one_line(capsys, target, what, words):
    code, out, told = run(capsys, what.format(target))
    assert (code, out) == (1, "")
    assert told.startswith("fulmen-fabric plan: ")
    assert words in told


def test_strategies_that_cannot_be_forecast_are_not_offered(capsys, target):
    code, out, told = run(capsys, f"{target}:alone", "--strategy", "deepspeed")
    assert (code, out) == (2, "")
    assert "deepspeed" in told
    assert "fsdp" in told


def test_a_wrong_option_is_refused_before_torch_is_loaded():
    code = "import sys\ntry:\n from fulmen.fabric.command import main\n main(['plan','x:y','--devices','0'])\n"
    code += "finally:\n print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'0' is no number from 1" in done.stderr
    assert done.stdout.strip() == "False"
