"""Several processes say and write a thing once."""

import multiprocessing
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch._dynamo  # with what a step imports at first, so that forked processes have it

import fulmen.cli.run

_IMPORTED = (torch._dynamo, fulmen.cli.run)
SHORT = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=2",
    "--trainer.max_steps=2",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
    "--curves=false",
]


@dataclass
class Both:
    """How two processes ended."""

    codes: list[int | None]
    out: str
    err: str


def side_by_side(folder: Path, *arguments: str, seconds: tuple[float, float] = (90, 90)) -> Both:
    """Two processes as torchrun starts them; forked, so that torch is there already."""
    fork = multiprocessing.get_context("fork")
    # Kept here, so that nobody else can take its port.
    store = torch.distributed.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    port = store.port
    processes = [fork.Process(target=_run, args=(folder, rank, port, arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process, patience in zip(processes, seconds, strict=True):
        process.join(patience)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    texts = {kind: "".join((folder / f"{kind}{rank}").read_text() for rank in range(2)) for kind in ("out", "err")}
    return Both(codes, **texts)


def _run(folder: Path, rank: int, port: int, arguments: tuple[str, ...]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", GROUP_RANK="0")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="a", OMP_NUM_THREADS="1")
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    os.environ.pop("FULMEN_GLOBAL_SEED", None)
    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{kind}{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = ["lightning-cli", *arguments]
    from fulmen.cli.command import main

    code = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def test_one_config_is_saved_and_one_report_printed(folder: Path) -> None:
    both = side_by_side(folder, "fit", "--model=cliapp.Model", *SHORT)
    assert both.codes == [0, 0], both.err
    assert [str(path.relative_to(folder)) for path in folder.rglob("config*.yaml")] == [
        "lightning_logs/version_0/config.yaml"
    ]
    assert both.out.count("Results:") == 1
    assert "\nseed_everything: true" not in (folder / "lightning_logs/version_0/config.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["fit", "--help"], "usage: lightning-cli fit", 0),
        (["--help"], "usage: lightning-cli", 0),
        (["fit", "--trainer.callbacks.help=EarlyStopping"], "--trainer.callbacks.monitor", 0),
        (["fit", "--model=cliapp.Model", "--print_config"], "seed_everything: ", 0),
    ],
)
def test_one_help_is_printed(folder: Path, arguments: list[str], words: str, code: int) -> None:
    both = side_by_side(folder, *arguments)
    assert both.codes == [code, code]
    assert both.out.count(words) == 1


def test_one_error_is_told(folder: Path) -> None:
    both = side_by_side(folder, "fit", "--model=cliapp.Modell")
    assert both.codes == [2, 2]
    assert both.err.count("error:") == 1


def test_an_error_in_a_run_is_told_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a launcher does: when rank zero has ended with an error, the others are ended.
    monkeypatch.setattr("fulmen.cli.run._OTHERS_WAIT_S", 600.0)
    both = side_by_side(folder, "fit", "--model=cliapp.Bare", "--trainer.accelerator=cpu", seconds=(60, 0.5))
    assert both.codes == [1, None]
    assert both.err.count("error:") == 1
    # Where only another rank fails, that one tells.
    monkeypatch.setattr("fulmen.cli.run._OTHERS_WAIT_S", 0.0)
    both = side_by_side(folder, "fit", "--model=cliapp.Bare", "--trainer.accelerator=cpu")
    assert both.codes == [1, 1]
    assert "training_step" in (folder / "err1").read_text()


def test_a_command_that_starts_the_processes_itself(folder: Path) -> None:
    program = folder / "lightning-cli"
    program.write_text("from fulmen.cli.command import main\nmain()\n")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FULMEN_")}
    ended = subprocess.run(
        [sys.executable, str(program), "fit", "--model=cliapp.Model", *SHORT],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=170,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert len(list(folder.rglob("config*.yaml"))) == 1
    assert ended.stdout.count("Results:") == 1
    assert ended.stderr.count("Seed set to") == 1
