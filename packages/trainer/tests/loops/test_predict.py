import pytest
import torch
from torch.utils.data import DataLoader

from fulmen.trainer.demos import BoringModel


class Asked(BoringModel):
    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return batch.sum().item(), batch_idx, dataloader_idx


def loader(*values):
    return DataLoader(torch.tensor(values).reshape(-1, 1))


def test_answers_come_back_in_order_one_list_for_each_of_several_loaders(quick):
    assert quick().predict(Asked(), loader(1, 2)) == [(1, 0, 0), (2, 1, 0)]
    assert quick().predict(Asked(), [loader(1, 2), loader(3)]) == [[(1, 0, 0), (2, 1, 0)], [(3, 0, 1)]]


@pytest.mark.parametrize("limit", [0, 1, 0.5])
def test_predictions_are_limited(limit, quick):
    answers = quick(limit_predict_batches=limit).predict(Asked(), loader(1, 2))
    assert answers == ([(1, 0, 0)] if limit else [])


def test_answers_need_not_be_kept(quick):
    trainer = quick()
    assert trainer.predict(Asked(), loader(1, 2), return_predictions=False) is None
    assert trainer.predict_loop.counts.batch.total == 2
    assert trainer.predict_loop.predictions == [[]]
    assert trainer.predict(Asked(), loader(1)) == [(1, 0, 0)]


def test_without_a_predict_step_the_module_is_called(quick):
    module = BoringModel()
    [answer] = quick().predict(module, DataLoader(torch.ones(1, 32)))
    assert torch.allclose(answer, module(torch.ones(1, 32)))
