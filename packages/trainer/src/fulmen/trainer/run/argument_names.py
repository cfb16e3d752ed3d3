"""Which arguments a Trainer is given: each by its name, and each name one that it has (pure)."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fulmen.trainer.errors import ArgumentTypeError

# Arguments of older versions, and what stands in their place.
_OLD = {
    "amp_backend": "precision='16-mixed'",
    "amp_level": "precision='16-mixed'",
    "auto_lr_find": "fulmen.tuner.Tuner(trainer).lr_find(model)",
    "auto_scale_batch_size": "fulmen.tuner.Tuner(trainer).scale_batch_size(model)",
    "auto_select_gpus": "devices='auto'",
    "checkpoint_callback": "enable_checkpointing",
    "distributed_backend": "strategy",
    "early_stop_callback": "callbacks=[EarlyStopping(monitor=...)]",
    "flush_logs_every_n_steps": "CSVLogger(flush_logs_every_n_steps=...)",
    "gpus": "accelerator='gpu', devices={value!r}",
    "ipus": "accelerator='auto'",
    "log_gpu_memory": "callbacks=[DeviceStatsMonitor()]",
    "max_nb_epochs": "max_epochs={value!r}",
    "move_metrics_to_cpu": "metrics that are moved in the module",
    "multiple_trainloader_mode": "train_dataloaders=CombinedLoader(loaders, mode={value!r}) in fit",
    "num_processes": "accelerator='cpu', devices={value!r}",
    "prepare_data_per_node": "prepare_data_per_node as an attribute of the module or datamodule",
    "process_position": "callbacks=[TQDMProgressBar(process_position=...)]",
    "progress_bar_refresh_rate": "callbacks=[TQDMProgressBar(refresh_rate=...)]",
    "reload_dataloaders_every_epoch": "reload_dataloaders_every_n_epochs=1",
    "replace_sampler_ddp": "use_distributed_sampler={value!r}",
    "resume_from_checkpoint": "ckpt_path={value!r} in fit",
    "stochastic_weight_avg": "callbacks=[StochasticWeightAveraging(swa_lrs=...)]",
    "terminate_on_nan": "detect_anomaly={value!r}",
    "tpu_cores": "accelerator='tpu', devices={value!r}",
    "track_grad_norm": "fulmen.trainer.utilities.grad_norm in on_before_optimizer_step",
    "weights_save_path": "default_root_dir={value!r}",
    "weights_summary": "callbacks=[ModelSummary(max_depth=...)]",
}


def check_given(positional: Sequence[Any], named: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse values without a name, and names that a Trainer does not have.

    Raises:
        ArgumentTypeError: With the nearest name, or with what stands in the place of an older one.
    """
    if positional:
        raise ArgumentTypeError(
            f"Trainer({_short(positional[0])}) was given a value without the name of its argument."
            " There are some forty of them, and which one is meant could only be guessed."
            f" Pass it by name, such as Trainer({next(iter(known))}=...)."
        )
    for name, value in named.items():
        if name not in known:
            raise ArgumentTypeError(
                f"Trainer({name}={_short(value)}) is no argument of Trainer. {_advice(name, value, known)}"
            )


def _advice(name: str, value: Any, known: Collection[str]) -> str:
    if name in _OLD:
        return f"It was one in an older version, and is gone. Use {_OLD[name].format(value=value)}."
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    if near:
        return f"It would have no effect. The nearest one is {near[0]}: pass {near[0]}={_short(value)}."
    return "It would have no effect. Remove it; help(Trainer) lists the arguments."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
