"""What a program loads before it has asked for anything special: counted, since seconds depend on the machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parents[2] / "packages"

# In one process, one after the other; each with the modules of ours that are loaded by then.
STEPS = {
    "Fabric": "from fulmen.fabric import Fabric",
    "Trainer": "from fulmen.trainer import LightningModule, Trainer",
    "help": "from fulmen.cli.command import main\nquietly(main, ['--help'])",
    "fit help": "quietly(main, ['fit', '--help'])",
}
BEGIN = """
import contextlib, io, json, sys, torch
def quietly(function, *args):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        function(*args)
"""
# What a run with default flags on one device does not use.
OPTIONAL = {
    "fabric.checkpoint_io": ("background", "consolidate", "sharded", "sharded_folder", "shards", "staging", "wrapper"),
    "fabric.collectives": ("single_device", "torch"),
    "fabric.environments": ("kubeflow", "lsf", "mpi", "torchelastic", "xla"),
    "fabric.loggers": ("tensorboard",),
    "fabric.precision": ("bitsandbytes", "deepspeed", "fsdp", "torchao", "transformer_engine", "xla"),
    "fabric.strategies": (
        "ddp",
        "deepspeed.strategy",
        "dp",
        "fsdp",
        "model_parallel",
        "pipeline.strategy",
        "sharded",
        "single_xla",
        "xla.strategy",
        "xla_fsdp",
    ),
    "trainer.callbacks": (
        "device_stats",
        "early_stopping",
        "finetuning",
        "gradient_accumulation",
        "lambda_callback",
        "lr_monitor",
        "prediction_writer",
        "pruning",
        "rich_progress_bar",
        "spike",
        "stochastic_weight_averaging",
        "throughput",
        "timer",
        "weight_averaging",
    ),
    "trainer.delivery": ("backlog", "sender"),
    "trainer.loggers": ("comet", "litlogger", "mlflow", "neptune", "tensorboard", "wandb"),
    "trainer.profilers": ("advanced", "pytorch", "simple", "xla"),
    "trainer.strategies": ("ddp", "deepspeed", "fsdp", "model_parallel", "sharded", "single_xla", "xla", "xla_fsdp"),
}
MAX_MODULES = {"Fabric": 90, "Trainer": 250, "help": 275}  # each costs about a millisecond


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    program = [BEGIN]
    for name, code in STEPS.items():
        program += [code, f"print(json.dumps([{name!r}, [name for name in sys.modules]]))"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "\n".join(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {name: set(modules) for name, modules in map(json.loads, done.stdout.splitlines())}


def test_what_is_listed_is_there():
    for place, names in OPTIONAL.items():
        package, folder = place.split(".")
        room = PACKAGES / package / "src" / "fulmen" / package / folder
        assert [name for name in names if not room.joinpath(*name.split(".")).with_suffix(".py").is_file()] == []


@pytest.mark.parametrize("step", MAX_MODULES)
def test_what_nobody_asked_for_is_not_loaded(loaded, step):
    optional = {f"fulmen.{folder}.{name}" for folder, names in OPTIONAL.items() for name in names}
    assert sorted(optional & loaded[step]) == []


@pytest.mark.parametrize(("step", "most"), MAX_MODULES.items())
def test_few_modules_are_loaded(loaded, step, most):
    assert len([name for name in loaded[step] if name.startswith("fulmen.")]) <= most


def test_help_knows_the_names_of_classes_without_what_they_draw_with(loaded):
    assert "fulmen.trainer.callbacks.rich_progress_bar" in loaded["fit help"]
    drawing = {"matplotlib", "rich", "tensorboard"}  # torch loads tqdm
    assert sorted(drawing & loaded["fit help"]) == []
