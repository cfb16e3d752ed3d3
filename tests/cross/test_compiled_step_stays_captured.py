"""A module given to `torch.compile` is captured in the first epoch, and from then on neither broken nor made anew."""

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader

from fulmen.trainer import LightningModule, Trainer


class Logs(LightningModule):
    """Logs in every way, and validates, so that captured code meets all that a run does around it."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1))
        self.graphs_at_epoch_ends = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.net(batch).sum()
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.net(batch).sum())

    def on_train_epoch_end(self) -> None:
        self.graphs_at_epoch_ends.append(len(graphs))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


graphs = []


def keep(graph, inputs):
    """A backend that only counts: what it is given is run as it is."""
    graphs.append(graph)
    return graph.forward


def test_no_graph_is_broken_and_none_is_made_after_the_first_epoch(tmp_path):
    torch._dynamo.reset()
    counters.clear()
    graphs.clear()
    module = Logs()
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    loaders = DataLoader(torch.randn(32, 8), 4), DataLoader(torch.randn(8, 8), 4)
    trainer.fit(torch.compile(module, backend=keep), *loaders)
    first, *later = module.graphs_at_epoch_ends
    assert first > 0, "nothing was captured"
    assert later == [first] * 3
    assert not counters["graph_break"]
