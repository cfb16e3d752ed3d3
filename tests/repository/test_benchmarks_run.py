"""The benchmarks run and print a table. What they measure is not looked at: tests do not fail by the clock."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the benchmarks draw on a pseudo-terminal")


def runs(name: str, *arguments: str) -> pytest.MarkDecorator:
    """The test looks at what this benchmark has `done`."""
    return pytest.mark.parametrize("program", [(f"benchmarks/{name}", *arguments)], ids=[name])


def rows(printed: str) -> list[list[str]]:
    """The cells of a Markdown table, without its head."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@runs("step_overhead.py", "--steps", "20", "--pairs", "1")
def test_step_overhead_prints_a_row_for_each_subject_and_nothing_of_the_bar(done):
    assert done.returncode == 0, done.stderr
    table = rows(done.stdout)
    assert [row[0].split(",")[0] for row in table] == ["the plain loop again", "Fabric", *4 * ["Trainer"]]
    assert all(float(row[1]) > 0 and float(row[3]) > 0 for row in table)
    assert [row[6] for row in table] == ["", "1.06", "1.12", "1.22", "1.30", "1.40"]
    assert {row[7] for row in table[1:]} <= {"pass", "fail"}
    assert "Epoch" not in done.stdout + done.stderr


@runs("peers.py", "--parts", "train,evaluate", "--works", "linear", "--only", "off", "--steps", "20", "--pairs", "1")
def test_peers_prints_training_and_evaluation_and_whether_a_peer_was_faster(done):
    assert done.returncode == 0, done.stderr
    training, evaluation = (rows(part) for part in done.stdout.split("\n\n")[1:3])
    assert [row[0] for row in training] == ["the plain loop again", "**Fulmen** Trainer, all off"]
    assert (training[1][4], training[1][5] in ("pass", "fail")) == ("1.10", True)
    assert [row[0] for row in evaluation] == [row[0] for row in training]
    assert all(float(cell.split(" ")[0]) > 0 for row in evaluation for cell in row[1:])
    assert done.stdout.endswith("\nNo peer was faster.\n")


def test_the_page_gets_what_was_measured_and_says_what_was_not(tmp_path):
    program = Path(__file__).parents[2] / "benchmarks" / "everything.py"
    page, (begin, end) = (
        tmp_path / "page.md",
        ("<!-- {}: written by benchmarks/everything.py -->", "<!-- end of {} -->"),
    )
    names = ("machine", "epoch_gap", "slopes")
    page.write_text("\n".join(f"# {name}\n{begin.format(name)}\n{end.format(name)}" for name in names))
    parts = {"epoch_gap": {"printed": "| a table |", "seconds": 1, "machine": "A machine, on a day"}}
    page.with_suffix(".json").write_text(json.dumps({"parts": parts}))
    command = [sys.executable, str(program), "--parts", "none", "--write", str(page)]
    for _ in range(2):  # the second time changes nothing
        subprocess.run(command, check=True, timeout=60)
        assert page.read_text().splitlines() == [
            "# machine",
            begin.format("machine"),
            "",
            "- A machine, on a day: epoch gap.",
            "",
            end.format("machine"),
            "# epoch_gap",
            begin.format("epoch_gap"),
            "",
            "| a table |",
            "",
            end.format("epoch_gap"),
            "# slopes",
            begin.format("slopes"),
            "",
            "Not measured yet: `nox -s bench -- --parts slopes --write docs/performance.md`.",
            "",
            end.format("slopes"),
        ]


@runs("epoch_gap.py", "--rounds", "1", "--only", "off")
def test_epoch_gap_prints_the_pause_between_two_epochs(done):
    assert done.returncode == 0, done.stderr
    [[title, pause, _, _, target, verdict]] = rows(done.stdout)
    assert (title, target) == ("**Fulmen** Trainer, all off", "5 ms")
    assert float(pause.removesuffix(" ms")) > 0
    assert verdict in ("pass", "fail")


@runs("slopes.py", "--only", "idle", "--pairs", "1")
def test_slopes_prints_what_a_step_costs_at_each_size_and_that_callbacks_which_hear_nothing_are_never_called(done):
    assert done.returncode == 0, done.stderr
    [[what, costs, _, target, calls, verdict]] = rows(done.stdout)
    assert (what, target) == ("callbacks that hear no batch", "0.00")
    assert [cost.split(":")[0] for cost in costs.split(", ")] == ["1", "10", "100"]
    assert len({call.split(": ")[1] for call in calls.split(", ")}) == 1
    assert verdict == "pass"


@runs("forecast.py", "--num-blocks", "1", "--num-nodes", "2")
def test_forecast_prints_a_forecast_and_what_it_took(done):
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("strategy         FSDPStrategy, precision bf16-mixed\n")
    assert "16: 8 on each of 2 machines" in done.stdout
    assert done.stdout.endswith("at most (targets: 30 s, 2.00 GiB)\n")


@runs("ddp_overhead.py", "--works", "mlp", "--steps", "3", "--blocks", "2", "--rounds", "1")
def test_ddp_overhead_prints_what_two_processes_cost_and_how_often_they_talk(done):
    assert done.returncode == 0, done.stderr
    again, *ours = rows(done.stdout.split("\n\n")[1])
    assert (again[0], again[9]) == ("hand-written DDP again", "")
    assert [row[0].split(",")[0] for row in ours] == ["Fabric", "Trainer", "Trainer"]
    assert {row[7] for row in (again, *ours)} == {"1 allreduce"}
    assert {row[8] for row in ours} == {"1.05"}
    assert all(float(row[1]) > 0 and row[9].split(":")[0] in ("pass", "fail", "unclear") for row in ours)
    # How many are counted, and not timed.
    ends = rows(done.stdout.split("\n\n")[-1])
    assert [row[0] for row in ends] == ["0", "1", "10", "100"]
    assert {row[4] for row in ends} == {"pass"}


@runs("fsdp_overhead.py", "--steps", "1", "--blocks", "1", "--rounds", "1")
def test_fsdp_overhead_prints_what_the_trainer_costs_and_how_often_it_talks(done):
    assert done.returncode == 0, done.stderr
    tables = done.stdout.split("\n\n")[1::2]
    assert len(tables) == 2
    for table in tables:
        again, *ours = rows(table)
        assert [row[0] for row in ours] == ["Fabric, strategy fsdp", "Trainer, strategy fsdp", "Trainer, a plan"]
        assert {row[8] for row in ours} == {"1.05"}
        assert {row[7] for row in ours} == {again[7]}
        assert all(float(row[1]) > 0 for row in ours)


@runs("every_mesh.py", "--processes", "2", "--plans", "ring", "--how", "norm clipped", "--schedules", "")
def test_every_mesh_prints_how_far_each_is_from_one_process(done):
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    assert len(found) == 4
    assert all(float(row[3]) < 1e-9 for row in found)
    assert done.stdout.endswith("1e-09 is allowed: pass.\n")


@runs("import_time.py", "--runs", "1", "--only", "fabric.used")
def test_import_time_prints_torch_and_what_comes_on_top_of_it(done):
    assert done.returncode == 0, done.stderr
    torch_row, fabric_row = rows(done.stdout)
    assert fabric_row[4] == "0.15 s"
    assert fabric_row[5] in ("pass", "fail")
    assert float(torch_row[1].removesuffix(" s")) > 0


@runs("evaluation_overhead.py", "--batches", "20", "--pairs", "1")
def test_evaluation_overhead_prints_a_row_for_each_entry_point(done):
    assert done.returncode == 0, done.stderr
    names = [row[0].split(",")[0] for row in rows(done.stdout)]
    assert names == ["the plain loop again", "Trainer.validate", "Trainer.test", "Trainer.predict"]
    assert all(row[5] == "1.15" and row[6] in ("pass", "fail") for row in rows(done.stdout)[1:])


@runs("logged_keys.py", "--only", "silent,ten,thousand_csv", "--pairs", "1", "--steps", "20")
def test_logged_keys_prints_what_a_key_costs(done):
    assert done.returncode == 0, done.stderr
    table = rows(done.stdout)
    assert [row[0] for row in table] == ["nothing logged", "10 keys", "1000 keys, on step and epoch, CSV logger"]
    assert [row[5] for row in table[1:]] == ["0.1 per key", "20 ms a step"]


@runs("memory_growth.py", "--steps", "400", "--epochs", "2")
def test_memory_growth_prints_a_slope(done):
    assert done.returncode == 0, done.stderr
    [[slope, target, verdict]] = rows(done.stdout)
    assert slope.endswith("bytes a step")
    assert (target, verdict in ("pass", "fail")) == ("1", True)


@runs("resume_time.py", "--quick")
def test_resume_time_prints_how_long_the_first_new_batch_takes(done):
    assert done.returncode == 0, done.stderr
    [row] = rows(done.stdout)
    assert row[4] == "2.00"
    assert row[5] in ("pass", "fail")
    assert float(row[3]) > 0


@runs("checkpoint_io.py", "--pairs", "1", "--megabytes", "4")
def test_checkpoint_io_prints_a_row_for_each_promise(done):
    assert done.returncode == 0, done.stderr
    table = rows(done.stdout)
    assert [row[0].split(" ")[0] for row in table] == ["save,", "load", "stall", "the", "stall", "peak"]
    assert [row[5] for row in table] == ["1.15", "1.30", "0.25", "0.25", "0.25", "1.20"]
    assert {row[6] for row in table} <= {"pass", "fail"}


@runs("callbacks_and_loggers.py", "--quick")
def test_callbacks_and_loggers_prints_a_row_for_each_promise(done):
    assert done.returncode == 0, done.stderr
    table = rows(done.stdout)
    assert [row[2] for row in table] == ["1.10", "10 kB", "0.5 s", "1.10", "100", "3", "0.05"]
    assert {row[3] for row in table} <= {"pass", "fail"}
    # These do not depend on the clock.
    assert {row[0]: row[3] for row in table}["kill -9: rows lost of those logged, flushing every 100"] == "pass"
    assert {row[0]: row[3] for row in table}["3 runs started at once in one folder: folders"] == "pass"


@runs("power_cut.py", "--quick")
def test_power_cut_prints_what_was_lost_or_why_it_was_not_measured(done):
    assert done.returncode == 0, done.stdout + done.stderr
    if "Not measured" not in done.stdout:
        table = rows(done.stdout)
        assert [row[4] for row in table] == [*5 * ["pass"], "for comparison"]
        assert [row[1] for row in table] == 6 * ["1"]


@runs("broken_disk.py", "--quick")
def test_broken_disk_prints_what_was_lost_or_why_it_was_not_measured(done):
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Not measured" in done.stdout or {row[6] for row in rows(done.stdout)} == {"pass"}


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks Linux which processes are there")
@runs("signal_cases.py", "--quick")
def test_signal_cases_prints_how_each_run_ended(done):
    table = rows(done.stdout)
    assert [row[0] for row in table] == ["alone", "fork", "fork"], done.stdout + done.stderr
    # How long it took is not looked at.
    wrong = [note for row in table for note in row[5].split("; ") if note != "pass" and "too late" not in note]
    assert wrong == [], done.stdout


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for processes as only Linux can")
@runs("fail_fast.py", "--quick")
def test_fail_fast_prints_how_soon_all_processes_of_a_run_were_gone(done):
    [row] = rows(done.stdout)
    assert row[:3] == ["fork", "rank 1", "raises"], done.stdout + done.stderr
    # How long it took is not looked at.
    assert row[4:] in (["1", "pass"], ["1", "too late"]), done.stdout


@runs("fuzz_inputs.py", "--quick")
def test_fuzz_inputs_finds_no_import_and_no_crash(done):
    table = rows(done.stdout)
    assert sum(int(row[1]) for row in table) == 200, done.stdout + done.stderr
    assert [row[2:4] for row in table] == len(table) * [["0", "0"]], done.stdout


_WRONG = [
    ("step_overhead.py", "--pairs=0"),
    ("step_overhead.py", "--only=fabrik"),
    ("step_overhead.py", "--peers=nobody"),
    ("checkpoint_io.py", "--only=lode"),
    ("callbacks_and_loggers.py", "--only=saive"),
    ("kill_while_saving.py", "--kills=0"),  # it runs in tests/cross/test_kill_while_saving.py
    ("fail_fast.py", "--only=scribt"),
    ("fuzz_inputs.py", "--only=jason"),
    ("peers.py", "--only=kerass"),
    ("peers.py", "--parts=star"),
    ("everything.py", "--parts=peers"),
    ("slopes.py", "--only=calbacks"),
    ("forecast.py", "--num-nodes=0"),
    ("deepspeed_overhead.py", "--pairs=0"),  # its package is heavy: no test runs the rest
]


@pytest.mark.parametrize("program", [(f"benchmarks/{name}", argument) for name, argument in _WRONG], ids=str)
def test_a_wrong_argument_is_answered_before_anything_runs(done, program):
    assert done.returncode == 2
    assert program[1].replace("=", " ") in done.stderr
    assert done.stdout == ""
