"""No row of the reference's list of misconfigurations is left out: each is answered in `test_bad_input.py` or here.

Rows of the tuner (T265 to T279, C254 to C257, W56, W57), of Fabric (F307 to F337, W65, W68) and of its launchers and
loggers (L298 to L300, L305, T011) are answered in the tests of those packages.
"""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# The rows of the list, as the first and the last number under each letter; some numbers are left out there.
ROWS = {"T": (0, 101), "E": (102, 167), "O": (169, 195), "L": (196, 305), "C": (213, 264), "W": (0, 67)}
NO_ROWS = {*(f"L{number}" for number in range(213, 280)), "W05", "W22", "W25", "W37", "W54"}
ELSEWHERE_BELOW = {"C254", "C255", "C256", "C257", "W56", "W57", "L298", "L299", "L300", "L305", "T011", "W65"}

# Row to the test of it.
TESTS = {
    # Right here: FSDP splits on a CPU too.
    "T010": "strategies/test_sharded.py::test_windows_are_summed_as_in_one_process_and_go_on_where_they_were_left",
    "E104": "test_bad_input.py::test_a_missing_model_is_told_by_python",
    # Right here: processes that are spawned send their predictions home.
    "E150": "test_processes.py::test_what_the_first_process_found_out_comes_home",
    "E167": "core/test_module.py::test_without_a_run_it_is_a_torch_module",
    "C214": "callbacks/test_model_checkpoint.py::test_arguments_that_make_no_sense_are_refused_and_quoted",
    "C215": "callbacks/test_model_checkpoint.py::test_arguments_that_make_no_sense_are_refused_and_quoted",
    "C216": "callbacks/test_model_checkpoint.py::test_arguments_that_make_no_sense_are_refused_and_quoted",
    "C217": "callbacks/test_model_checkpoint.py::test_arguments_that_make_no_sense_are_refused_and_quoted",
    "C219": "callbacks/test_model_checkpoint.py::test_a_monitor_that_nobody_logs_is_an_error_that_lists_those_that_are",
    "C220": "test_every_misconfiguration.py::test_a_missing_monitor_is_told_by_python",
    "C225": "callbacks/test_device_stats.py::test_it_needs_a_logger",
    "C226": "callbacks/test_throughput.py::test_bad_arguments_are_answered_at_once",
    "C227": "callbacks/test_lr_monitor.py::test_two_groups_of_one_name_are_refused",
    **dict.fromkeys(("C228", "C229", "C230"), "callbacks/test_gradient_accumulation.py::test_no_schedule"),
    "C231": "callbacks/test_gradient_accumulation.py::test_two_that_decide",
    "C232": "callbacks/test_gradient_accumulation.py::test_not_by_hand",
    **{f"C{row}": "callbacks/test_stochastic_weight_averaging.py::test_bad_arguments" for row in range(233, 239)},
    **{f"C{row}": "callbacks/test_stochastic_weight_averaging.py::test_it_cannot_be_done" for row in (239, 240)},
    "C241": "callbacks/test_finetuning.py::test_no_backbone",
    "C242": "callbacks/test_finetuning.py::test_nothing_defined",
    "C245": "callbacks/test_prediction_writer.py::test_intervals_are_three",
    "C246": "callbacks/test_on_exception_checkpoint.py::test_an_empty_name_is_refused",
    **{f"C{row}": "callbacks/test_pruning.py::test_contradictions_are_refused_at_once" for row in range(247, 254)},
    "C258": "callbacks/test_rich_progress_bar.py::test_negative_rates_and_missing_packages_are_refused",
    "C259": "callbacks/test_rich_model_summary.py::test_without_rich_it_says_how_to_install_it",
    "C260": "callbacks/test_model_summary.py::test_a_depth_that_is_none_is_refused",
    "C261": "callbacks/test_weight_averaging.py::test_two_averages",
    "C262": "callbacks/test_lambda_callback.py::test_an_unknown_hook_is_a_type_error",
    **dict.fromkeys(("L280", "L281"), "profilers/test_simple.py::test_mistakes_are_value_errors_that_quote_the_action"),
    "L282": "profilers/test_advanced.py::test_mistakes_are_value_errors_that_quote_the_action",
    **{f"L{row}": "profilers/test_pytorch.py::test_bad_input" for row in range(283, 288)},
    "L288": "test_every_misconfiguration.py::test_tensorboard_takes_numbers",
    "L289": "core/test_loading.py::test_on_an_object_it_is_an_error_but_may_be_looked_at",
    "L290": "core/test_loading.py::test_hparams_from_json_is_an_error",
    "L291": "core/test_loading.py::test_missing_and_truncated_files",
    "L292": "core/test_loading.py::test_missing_arguments_are_named",
    "L293": "core/test_loading.py::test_differences_of_weights",
    "L294": "core/test_loading.py::test_code_in_a_file_is_not_run",
    **dict.fromkeys(("L295", "L296"), "core/test_export.py::test_what_cannot_be_exported_is_told"),
    "L297": "core/test_export.py::test_a_missing_package_is_named_with_the_line_that_installs_it",
    **{f"L{row}": "test_every_misconfiguration.py::test_a_logger_without_its_package" for row in range(301, 305)},
    # Warnings
    "W03": "test_bad_input.py::test_what_a_mode_switches_off_is_told",
    "W06": "test_bad_input.py::test_what_a_mode_switches_off_is_told",
    "W07": "connectors/test_loggers.py",  # CSV files are what a Trainer writes unless it is told otherwise
    "W21": "test_bad_input.py",  # an error: "an empty dataset"
    "W32": "metrics",  # torchmetrics tells
    "W34": "core/test_hparams.py::test_unpicklable_values_are_dropped",
    "W35": "callbacks/test_model_checkpoint.py::test_a_folder_with_files_is_mentioned",
    "W36": "callbacks/test_model_checkpoint.py::test_before_validation_has_run_a_missing_monitor_only_warns",
    **dict.fromkeys(("W38", "W39"), "callbacks/test_early_stopping.py::test_a_monitor_that_nobody_logs"),
    "W40": "callbacks/test_lr_monitor.py::test_an_optimizer_without_momentum_is_named_in_a_warning",
    "W44": "callbacks/test_tqdm_progress_bar.py::test_a_metric_with_a_name_of_the_bar_is_shown_and_warned_of",
    "W45": "loops/test_resume.py",  # a fit that goes on inside an epoch is exact
    "W48": "checkpoint/test_paths.py::test_of_two_callbacks_the_first_is_asked_for_the_best",
    "W50": "checkpoint/test_paths.py::test_what_a_failed_run_left_is_taken_unasked_by_fit_only",
    "W51": "core/test_loading.py::test_differences_of_weights",
    "W53": "test_format_version.py::test_a_module_from_a_newer_one",
    "W55": "loggers/test_tensorboard.py::test_a_graph_needs_an_example",
    "W58": "core/test_export.py::test_torchscript_computes_what_the_module_computes_and_leaves_it_as_it_was",
    "W61": "test_lifecycle.py::test_ctrl_c_ends_a_program_with_130_and_leaves_a_prompt_alive",
    "W62": "callbacks/test_early_stopping.py::test_it_tells_what_improved_and_why_it_stops",
}


def test_every_row_is_answered():
    answered = set(re.findall(r"\b([TEOLCW]\d{2,3})\b", (HERE / "test_bad_input.py").read_text()))
    answered |= {f"T{number:03}" for number in range(89, 98)}  # made there from one table
    rows = {
        f"{letter}{number:0{2 if letter == 'W' else 3}}"
        for letter, (first, last) in ROWS.items()
        for number in range(first, last + 1)
    } - NO_ROWS
    assert sorted(rows - answered - set(TESTS) - ELSEWHERE_BELOW) == []
    assert set(TESTS) <= rows


@pytest.mark.parametrize("where", sorted(set(TESTS.values())))
def test_the_tests_are_there(where):
    file, _, name = where.partition("::")
    path = HERE / file
    assert path.exists()
    assert not name or re.search(rf"^def {name}\(", path.read_text(), re.MULTILINE)


def test_a_missing_monitor_is_told_by_python():
    from fulmen.trainer.callbacks import EarlyStopping

    with pytest.raises(TypeError, match="monitor"):
        EarlyStopping()


def test_tensorboard_takes_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from fulmen.trainer.loggers import TensorBoardLogger

    with pytest.raises(ValueError, match="log_metrics"):
        TensorBoardLogger(tmp_path).log_metrics({"a": object()}, step=0)


PACKAGES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow", "CometLogger": "comet_ml", "NeptuneLogger": "neptune"}


@pytest.mark.parametrize(("logger", "package"), PACKAGES.items())
def test_a_logger_without_its_package(logger, package, monkeypatch, tmp_path):
    from fulmen.trainer import loggers

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=package):
        getattr(loggers, logger)()
