import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader

from fulmen.fabric.errors import ConfigurationError, MisconfigurationException
from fulmen.trainer.callbacks import ModelCheckpoint, ModelPruning
from fulmen.trainer.callbacks.masked_weights import is_masked
from fulmen.trainer.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
from fulmen.trainer.callbacks.weight_averaging import EMAWeightAveraging, WeightAveraging
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.trainer import Trainer

STATES = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))


class Net(LightningModule):
    def __init__(self, seed=1):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
            self.head = nn.Linear(16, 2)
        self.epochs = []

    def training_step(self, batch, batch_idx):
        return self.head(self.body(batch)).square().mean()

    def validation_step(self, batch, batch_idx):
        self.head(self.body(batch))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)

    def on_train_epoch_start(self):
        self.epochs.append(zeros(self))


def zeros(module):
    return {name: int((p == 0).sum()) for name, p in plain(module).items() if "weight" in name}


def plain(module):
    """The weights that the layers use."""
    found = {}
    for name, layer in module.named_modules():
        for parameter in ("weight", "bias"):
            value = getattr(layer, parameter, None)
            if isinstance(value, torch.Tensor):
                mask, orig = getattr(layer, f"{parameter}_mask", None), getattr(layer, f"{parameter}_orig", None)
                found[f"{name}.{parameter}"] = (value if mask is None else mask * orig).detach().clone()
    return found


def loader():
    return DataLoader(STATES, batch_size=4)


def fit(pruning, quick, module=None, **flags):
    module = module or Net()
    trainer = quick(callbacks=[pruning, *flags.pop("more", [])], **flags)
    trainer.fit(module, loader(), loader(), ckpt_path=flags.pop("ckpt_path", None))
    return module, trainer


METHODS = {
    "l1_unstructured": {},
    "random_unstructured": {},
    "local l1": {"use_global_unstructured": False},
    "ln_structured": {"use_global_unstructured": False, "pruning_dim": 0, "pruning_norm": 2},
    "random_structured": {"use_global_unstructured": False, "pruning_dim": 1},
}


def pruning_by(name, **given):
    further = {"parameter_names": ["weight"], **METHODS[name], **given}
    return ModelPruning("l1_unstructured" if name == "local l1" else name, **further)


@pytest.mark.parametrize("name", METHODS)
def test_each_method_prunes_what_it_is_told_and_zeros_stay(name, quick):
    module, _ = fit(pruning_by(name, amount=0.25, use_lottery_ticket_hypothesis=False), quick, max_epochs=2)
    total = sum(p.numel() for key, p in plain(module).items() if "weight" in key)
    # Twice a quarter of what was left, except where slices are rounded.
    assert 0.3 * total < sum(zeros(module).values()) < 0.6 * total
    assert list(module.state_dict()) == list(Net().state_dict())
    assert not any(is_masked(layer, "weight") for layer in module.modules())
    assert [name for name, _ in module.named_parameters()] == [name for name, _ in Net().named_parameters()]
    assert sum(module.epochs[0].values()) == 0 < sum(module.epochs[1].values())


@settings(deadline=None, max_examples=12)
@given(
    name=st.sampled_from(list(METHODS)),
    stop=st.integers(1, 2),
    lottery=st.booleans(),
    permanent=st.booleans(),
    resample=st.booleans(),
    after_validation=st.booleans(),
)
def test_a_fit_that_goes_on_prunes_and_trains_as_one_that_was_not_interrupted(
    name, stop, lottery, permanent, resample, after_validation, tmp_path_factory
):
    def run(max_epochs, module, folder=None, ckpt_path=None):
        pruning = pruning_by(
            name,
            amount=0.25,
            use_lottery_ticket_hypothesis=lottery,
            make_pruning_permanent=permanent,
            resample_parameters=resample,
            prune_on_train_epoch_end=not after_validation,
        )
        more = [ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")] if folder else []
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=max_epochs,
            logger=False,
            enable_checkpointing=bool(folder),
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[pruning, *more],
            default_root_dir=tmp_path_factory.getbasetemp(),
        )
        trainer.fit(module, loader(), loader(), ckpt_path=ckpt_path)
        return plain(module), trainer.optimizers[0].state_dict()

    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(5)
    weights, optimizer = run(3, Net(), folder)
    saved = folder / f"epoch={stop - 1}.ckpt"
    keys = set(torch.load(saved)["state_dict"])
    assert (keys == set(Net().state_dict())) == permanent
    went_on, its_optimizer = run(3, Net(seed=2), ckpt_path=saved)
    for key, value in weights.items():
        assert torch.equal(went_on[key], value), key
    for index, state in optimizer["state"].items():
        assert torch.equal(its_optimizer["state"][index]["exp_avg"], state["exp_avg"])


def test_the_winning_ticket_starts_from_first_values(quick):
    seen = {}

    class Looks(ModelPruning):
        def on_train_epoch_start(self, trainer, module):
            super().on_train_epoch_start(trainer, module)
            seen[trainer.current_epoch] = plain(module)

    first = plain(Net())
    module, _ = fit(Looks("l1_unstructured", amount=0.2), quick, max_epochs=2)
    for name, value in seen[1].items():
        left = value != 0
        assert torch.equal(value[left], first[name][left])
    assert sum(int((value == 0).sum()) for value in seen[1].values()) == 90  # a fifth of 450
    # At the end they are trained.
    assert any(not torch.equal(value[value != 0], first[name][value != 0]) for name, value in plain(module).items())


def test_functions_of_the_epoch_say_when_and_how_much(quick):
    asked = []

    def amount(epoch):
        asked.append(epoch)
        return 10 * epoch

    pruning = ModelPruning(
        "l1_unstructured",
        amount=amount,
        apply_pruning=lambda epoch: epoch != 2,
        use_lottery_ticket_hypothesis=lambda epoch: False,
    )
    module, _ = fit(pruning, quick, max_epochs=4)
    assert asked == [0, 1, 2, 3]
    assert sum(int((value == 0).sum()) for value in plain(module).values()) == 10 + 30


def test_own_methods_and_functions(quick):
    class First(prune.BasePruningMethod):
        PRUNING_TYPE = "unstructured"

        def __init__(self, amount):
            self.amount = amount

        @classmethod
        def apply(cls, module, name, amount):
            return super().apply(module, name, amount=amount)

        def compute_mask(self, t, default_mask):
            mask = default_mask.clone()
            mask.view(-1)[: self.amount] = 0
            return mask

    def last_row(layer, name, amount):
        mask = torch.ones_like(getattr(layer, name))
        mask[-amount:] = 0
        prune.custom_from_mask(layer, name, mask)

    only_head = {"amount": 1, "use_lottery_ticket_hypothesis": False}
    for method, is_global in ((First, True), (First, False), (last_row, False)):
        module = Net()
        pruning = ModelPruning(method, [(module.head, "weight")], use_global_unstructured=is_global, **only_head)
        fit(pruning, quick, module)
        assert zeros(module)["head.weight"] == (16 if method is last_row else 1)
        assert zeros(module)["body.0.weight"] == 0


def test_what_to_prune_can_be_filtered(quick):
    class NotTheHead(ModelPruning):
        def filter_parameters_to_prune(self, parameters_to_prune=()):
            return [(layer, name) for layer, name in parameters_to_prune if layer.out_features != 2]

    module, _ = fit(NotTheHead("l1_unstructured", parameter_names=["weight"]), quick)
    assert zeros(module)["head.weight"] == 0 < zeros(module)["body.0.weight"]


def test_it_tells_what_it_does(quick, capsys, caplog):
    with caplog.at_level("INFO"):
        fit(ModelPruning("l1_unstructured", amount=0.5, verbose=2, parameter_names=["weight"]), quick)
    said = caplog.text + capsys.readouterr().err
    assert "Pruned by L1Unstructured(0.5): 0 (0.0%) -> 208 (50.0%) of 416 weights are zero." in said
    assert "head.weight: 0 (0.0%) -> " in said


def test_weights_alone_are_plain_too(quick, tmp_path):
    class Saves(ModelPruning):
        def on_train_epoch_end(self, trainer, module):
            super().on_train_epoch_end(trainer, module)
            trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)

    fit(Saves("l1_unstructured"), quick)
    saved = torch.load(tmp_path / "weights.ckpt")["state_dict"]
    assert list(saved) == list(Net().state_dict())
    assert sum(int((value == 0).sum()) for value in saved.values()) == 225


def test_masks_can_stay_and_evaluation_takes_either_form(quick, tmp_path):
    kept = ModelPruning("l1_unstructured", make_pruning_permanent=False)
    module, trainer = fit(kept, quick)
    assert is_masked(module.head, "weight")
    path = tmp_path / "masked.ckpt"
    trainer.save_checkpoint(path)
    fresh = Net(seed=3)
    quick(callbacks=ModelPruning("l1_unstructured")).validate(fresh, loader(), ckpt_path=path, verbose=False)
    for name, value in plain(module).items():
        assert torch.equal(plain(fresh)[name], value)
    # And plain weights into a module that has masks.
    plain_path = tmp_path / "plain.ckpt"
    quick().fit(Net(seed=4), loader())
    other = quick()
    other.fit(Net(seed=4), loader())
    other.save_checkpoint(plain_path)
    trainer.validate(module, loader(), ckpt_path=plain_path, verbose=False)
    for name, value in plain(other.lightning_module).items():
        assert torch.equal(plain(module)[name], value)


def test_a_module_can_be_copied_while_it_is_set_up(quick):
    class Copies(ModelPruning):
        def on_train_start(self, trainer, module):
            copy.deepcopy(module.head)

    fit(Copies("l1_unstructured"), quick)


def test_processes_prune_the_same_weights(quick, tmp_path):
    class Saves(Net):
        def on_fit_end(self):
            torch.save(plain(self), tmp_path / f"{self.trainer.global_rank}.pt")

        def on_train_epoch_end(self):
            torch.rand(self.trainer.global_rank)  # the processes draw differently from here on

    pruning = ModelPruning("random_unstructured", amount=0.3, resample_parameters=True)
    trainer = quick(callbacks=pruning, strategy="ddp_fork", devices=2, max_epochs=2)
    trainer.fit(Saves(), loader())
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert sum(int((value == 0).sum()) for value in first.values()) > 100
    for name, value in first.items():
        assert torch.equal(value, second[name])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pruning_fn": "foo"}, "pruning_fn='foo'.*'l1_unstructured', 'ln_structured'"),
        ({"pruning_fn": 3}, "pruning_fn=3"),
        ({"pruning_fn": "ln_structured"}, "lacks pruning_dim"),
        ({"pruning_fn": "ln_structured", "pruning_dim": 0}, "lacks pruning_norm"),
        ({"pruning_fn": "random_structured", "pruning_dim": 0}, "use_global_unstructured=True"),
        ({"pruning_fn": prune.LnStructured}, "LnStructured.*use_global_unstructured=True"),
        ({"pruning_fn": prune.l1_unstructured}, "is a function"),
        ({"amount": "x"}, "amount='x'"),
        ({"amount": 1.5}, "amount=1.5"),
        ({"amount": -1}, "amount=-1"),
        ({"verbose": 3}, "verbose=3"),
        ({"parameter_names": ["foo"]}, "holds 'foo'"),
    ],
)
def test_contradictions_are_refused_at_once(given, words):
    with pytest.raises(MisconfigurationException, match=words):
        ModelPruning(**{"pruning_fn": "l1_unstructured", **given})


def test_layers_that_are_not_there_are_refused_when_the_fit_begins(quick):
    module = Net()
    for pairs, words in (
        ([(module.head, "wait")], "holds .*'wait'"),
        ([module.head], "Pass pairs of a layer"),
        ([(nn.Linear(1, 1), "weight")], "no layer of Net"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            fit(ModelPruning("l1_unstructured", pairs), quick, module)
    with pytest.raises(ConfigurationError, match="nothing to prune in"):
        ModelPruning.sanitize_parameters_to_prune(LightningModule())


@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize("kind", [WeightAveraging, EMAWeightAveraging])
def test_an_average_is_pruned_too(quick, kind, use_buffers):
    average = kind(use_buffers=use_buffers)
    pruning = ModelPruning("l1_unstructured", amount=0.25, use_lottery_ticket_hypothesis=False)
    module = Net()
    trainer = quick(callbacks=[average, pruning], max_epochs=2)
    trainer.fit(module, loader(), loader())
    pruned = {name: ~saved["mask"] for name, saved in pruning.state_dict()["masks"].items()}
    assert sum(int(zeros.sum()) for zeros in pruned.values()) > 0
    for name, zeros in pruned.items():
        assert not module.get_parameter(name)[zeros].any()
        assert module.get_parameter(name)[~zeros].any()
    assert not any(key.endswith(("_mask", "_orig")) for key in module.state_dict())


@pytest.mark.parametrize("make", [WeightAveraging, lambda: StochasticWeightAveraging(0.1)])
def test_pruning_before_an_average_is_refused(quick, make):
    trainer = quick(callbacks=[ModelPruning("l1_unstructured"), make()], max_epochs=2)
    with pytest.raises(ConfigurationError, match=r"ModelPruning before \w*WeightAveraging.* Pass \w+ first"):
        trainer.fit(Net(), loader(), loader())
