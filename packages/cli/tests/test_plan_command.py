"""`lightning-cli plan`: the configuration of a fit, on machines that need not exist."""

import json
import sys
from pathlib import Path

import pytest
import torch

from fulmen.cli.command import main
from fulmen.cli.plan_command import trainer_arguments
from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer import Trainer
from fulmen.trainer.demos import BoringModel

MODEL = "--model=fulmen.trainer.demos.BoringModel"


class Sized(BoringModel):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.new_zeros(len(x), self.layer.in_features))


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


@pytest.mark.parametrize("option", ["--curves", "--weights_only=true"])
def test_what_would_change_nothing_is_refused_and_not_offered(
    option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["plan", MODEL, option])
    assert ended.value.code == 1
    assert f"lightning-cli plan {option} would change nothing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    assert option.partition("=")[0] + " " not in capsys.readouterr().out


def test_in_a_configuration_it_may_stay_and_a_checkpoint_says_how_the_model_is_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    wide = Sized(width=48)
    off = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
    Trainer(accelerator="cpu", max_steps=0, **off).fit(wide)  # type: ignore[arg-type]
    wide.trainer.save_checkpoint(tmp_path / "wide.ckpt")
    config = tmp_path / "fit.yaml"
    config.write_text("ckpt_path: wide.ckpt\nweights_only: true\n")
    capsys.readouterr()
    main(["plan", f"--config={config}", f"--model={__name__}.Sized", "--json=true"])
    assert json.loads(capsys.readouterr().out)["num_parameters"] == wide.layer.weight.numel() + 2


@pytest.mark.parametrize(
    ("devices", "number"), [(8, 8), ("8", 8), ([0, 1, 2], 3), ("0,3", 2), ("auto", 1), (-1, 1), ("-1", 1)]
)
def test_devices_are_counted(devices: object, number: int) -> None:
    arguments, found = trainer_arguments({"devices": devices, "accelerator": "tpu"})
    assert (found, arguments["devices"], arguments["accelerator"]) == (number, number, "cpu")


def test_a_strategy_that_cannot_be_forecast_is_refused_before_its_package_is_asked_for() -> None:
    with pytest.raises(ConfigurationError, match=r"trainer\.strategy='deepspeed_stage_2'.* Plan with strategy='fsdp'"):
        trainer_arguments({"strategy": "deepspeed_stage_2", "devices": 2})
