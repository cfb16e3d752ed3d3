"""`lightning-cli plan`: the configuration of a fit, on machines that need not exist."""

import json
import sys
from pathlib import Path

import pytest

from fulmen.cli.command import main
from fulmen.cli.plan_command import trainer_arguments

MODEL = "--model=fulmen.trainer.demos.BoringModel"


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "fit.yaml"
    path.write_text("trainer: {accelerator: gpu, devices: 8, num_nodes: 16, strategy: ddp, max_epochs: 3}\n")
    return str(path)


def test_the_configuration_of_a_fit_is_planned_where_its_devices_are_not(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    try:
        main(["plan", f"--config={config}", MODEL, "--json=true"])
        found = json.loads(capsys.readouterr().out)
        main(["plan", f"--config={config}", MODEL])
    finally:
        sys.path[:] = before
    assert (found["strategy"], found["world_size"], found["num_parameters"]) == ("DDPStrategy", 128, 66)
    assert "processes        128: 8 on each of 16 machines" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["fit.yaml"]  # no run has left anything


def test_the_help_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "What would a fit take" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("devices", "number"), [(8, 8), ("8", 8), ([0, 1, 2], 3), ("0,3", 2), ("auto", 1), (-1, 1), ("-1", 1)]
)
def test_devices_are_counted(devices: object, number: int) -> None:
    arguments, found = trainer_arguments({"devices": devices, "accelerator": "tpu"})
    assert (found, arguments["devices"], arguments["accelerator"]) == (number, number, "cpu")
