import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from fulmen.tuner.tuner import Tuner


def test_no_size_is_larger_than_the_data(kit, make_trainer):
    model = kit.Model()
    assert Tuner(make_trainer()).scale_batch_size(model) == 48


def test_nor_than_the_maximum(kit, make_trainer):
    assert Tuner(make_trainer()).scale_batch_size(kit.Model(), max_val=20) == 20


def test_data_without_a_length_have_the_maximum_only(kit, make_trainer):
    class Stream(IterableDataset):
        def __iter__(self):
            return ((torch.zeros(8), torch.tensor(0)) for _ in range(100))

    class Streaming(kit.Model):
        def train_dataloader(self):
            return DataLoader(Stream(), batch_size=self.batch_size)

    assert Tuner(make_trainer()).scale_batch_size(Streaming(), max_val=128) == 128


def test_few_data_make_as_many_steps_as_many(kit, make_trainer):
    steps = []

    class Counting(kit.Model):
        def on_before_optimizer_step(self, optimizer):
            steps.append(len(optimizer.state))

    Tuner(make_trainer(limit_val_batches=0)).scale_batch_size(Counting(), init_val=48, steps_per_trial=2)
    # The second step of one that keeps a state needs the most memory.
    assert len(steps) == 2
    assert steps[0] < steps[1]


def test_modules_that_never_step_end(kit, make_trainer):
    class Idle(kit.Model):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            return None

    assert Tuner(make_trainer()).scale_batch_size(Idle(), max_val=8) == 8


def test_it_goes_down_from_a_size_that_fails(kit, make_trainer):
    memory = kit.Memory(5)
    found = Tuner(make_trainer(limit_val_batches=0)).scale_batch_size(
        kit.Model(memory=memory), init_val=40, steps_per_trial=1
    )
    assert found == 5
    assert memory.asked == [40, 20, 10, 5]


def test_loaders_of_every_kind_follow(kit, make_trainer):
    class Two(kit.Model):
        def train_dataloader(self):
            return {"a": self.loader(), "b": DataLoader(kit.Points(), batch_size=3)}

        def training_step(self, batch, batch_idx):
            return self.step(batch["a"])

    assert Tuner(make_trainer()).scale_batch_size(Two(), max_val=32) == 32


@pytest.mark.parametrize("name", ["hparams.loader.size", "loader_options.size"])
def test_a_nested_size(kit, make_trainer, name):
    class Nested(kit.Model):
        def __init__(self):
            super().__init__()
            self.hparams["loader"] = self.loader_options = {"size": 4}

        def train_dataloader(self):
            return DataLoader(kit.Points(), batch_size=self.loader_options["size"])

    model = Nested()
    assert Tuner(make_trainer()).scale_batch_size(model, batch_arg_name=name, max_val=16) == 16
    assert model.loader_options == {"size": 16}
