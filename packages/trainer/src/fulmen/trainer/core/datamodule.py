"""LightningDataModule: the data of an experiment, with its loaders, in one object."""

from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Self

from torch.utils.data import DataLoader, Dataset, IterableDataset

from fulmen.fabric.accelerators.cuda import is_cuda_available
from fulmen.trainer._typing import Trainer
from fulmen.trainer.core.hooks import DataHooks
from fulmen.trainer.core.hparams import HyperparametersMixin
from fulmen.trainer.core.loading import build, class_only, read_checkpoint
from fulmen.trainer.signature import accepts, extension_point, is_overridden


@extension_point
class LightningDataModule(DataHooks, HyperparametersMixin):
    """Data, from download to loaders; override the hooks of `DataHooks`.

    `prepare_data` runs once, `setup` in every process, then the run asks for the loaders that it needs.
    """

    name: str | None = None
    CHECKPOINT_HYPER_PARAMS_KEY = "datamodule_hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME = "datamodule_hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE = "datamodule_hparams_type"

    #: The trainer of the run, while there is one.
    trainer: Trainer | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    @classmethod
    def from_datasets(
        cls,
        train_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        val_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        test_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        predict_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **datamodule_kwargs: Any,
    ) -> "LightningDataModule":
        """A datamodule with a loader for each dataset; the training ones are shuffled, unless they are iterable.

        Args:
            train_dataset, val_dataset, test_dataset, predict_dataset: A dataset, or several for as many loaders.
            batch_size: Samples in a batch.
            num_workers: Worker processes per loader.
            datamodule_kwargs: For the constructor of the class.
        """
        options = {"batch_size": batch_size, "num_workers": num_workers}
        if cls.__init__ is not LightningDataModule.__init__:
            datamodule_kwargs.update((key, value) for key, value in options.items() if accepts(cls, key))
        datamodule = cls(**datamodule_kwargs)
        given = {
            "train_dataloader": train_dataset,
            "val_dataloader": val_dataset,
            "test_dataloader": test_dataset,
            "predict_dataloader": predict_dataset,
        }
        for hook, data in given.items():
            if data is not None:
                shuffle = hook == "train_dataloader"
                setattr(datamodule, hook, _Loaders(data, batch_size, num_workers, shuffle))
        return datamodule

    def state_dict(self) -> dict[str, Any]:
        """What to keep in a checkpoint: plain data and tensors."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""

    def on_exception(self, exception: BaseException) -> None:
        """The run ends by `exception`, a signal or Ctrl-C."""

    @class_only
    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """A datamodule built with the hyperparameters in a checkpoint, with the state that it had.

        Args:
            checkpoint_path: A path, or a file opened for reading.
            map_location: As for `torch.load`.
            hparams_file: YAML or CSV with hyperparameters to use in place of those in the file.
            weights_only: None: True. False runs code from the file: only for files you trust.
            kwargs: Arguments of `__init__`, in place of those in the file.

        Raises:
            ArgumentTypeError: If an argument of `__init__` is found nowhere.
            CheckpointNotFoundError, CheckpointDamagedError: If the file is missing or cut short.
        """
        checkpoint = read_checkpoint(cls, checkpoint_path, map_location, hparams_file, weights_only, kwargs)
        datamodule = build(cls, checkpoint, kwargs)
        state = checkpoint.get(type(datamodule).__qualname__)
        if state is not None:
            datamodule.load_state_dict(state)
        return datamodule

    def __getstate__(self) -> dict[str, Any]:
        # The run is not part of the data: a copy, or one sent to another process, has none.
        return {name: value for name, value in self.__dict__.items() if name != "trainer"}

    def __str__(self) -> str:
        """One line for each kind of loader."""
        stages = {"Train": "train", "Validation": "val", "Test": "test", "Predict": "predict"}
        return "\n".join(f"{{{word} dataloader: {self._describe(hook)}}}" for word, hook in stages.items())

    def _describe(self, prefix: str) -> str:
        hook = f"{prefix}_dataloader"
        if not is_overridden(hook, self, LightningDataModule):
            return "None"
        try:
            loaders = getattr(self, hook)()
        except Exception:  # before setup() there is often nothing to show, and printing must not fail
            return "not available before setup"
        loaders = loaders if isinstance(loaders, (list, tuple)) else [loaders]
        return ", ".join(f"size={_size(loader)}" for loader in loaders)


class _Loaders:
    """Makes the loaders of one hook anew on every call; an object, so that it can be sent to other processes."""

    def __init__(self, data: Any, batch_size: int, num_workers: int, shuffle: bool) -> None:
        self.several = isinstance(data, Iterable) and not isinstance(data, Dataset)
        self.datasets = list(data) if self.several else [data]
        self.options: dict[str, Any] = {
            "batch_size": batch_size,
            "num_workers": num_workers,
            "pin_memory": is_cuda_available(),  # asked without a CUDA context, which would forbid to fork
        }
        self.shuffle = shuffle

    def __call__(self) -> Any:
        loaders = [
            DataLoader(data, shuffle=self.shuffle and not isinstance(data, IterableDataset), **self.options)
            for data in self.datasets
        ]
        return loaders if self.several else loaders[0]


def _size(loader: Any) -> int | str:
    try:
        return len(loader)
    except TypeError:
        return "unknown"
