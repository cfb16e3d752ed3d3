from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.demos import LightningLSTM, SequenceSampler, SimpleLSTM, SyntheticText


@given(st.integers(1, 50), st.integers(1, 8))
def test_each_batch_goes_on_where_the_one_before_ended(num_samples, batch_size):
    sampler = SequenceSampler(range(num_samples), batch_size)
    batches = list(sampler)
    assert len(batches) == len(sampler) == num_samples // batch_size
    for before, after in pairwise(batches):
        assert after == [index + 1 for index in before]
    seen = [index for batch in batches for index in batch]
    assert len(set(seen)) == len(seen)
    assert all(index < num_samples for index in seen)


def test_it_learns_and_remembers_over_batches(quick):
    torch.manual_seed(0)
    text = SyntheticText(num_words=4_000, vocab_size=12, block_size=10)
    net = LightningLSTM(text=text, model=SimpleLSTM(12, ninp=16, nhid=16, nlayers=1))
    losses, states = [], []

    def on_train_batch_end(outputs, batch, batch_idx):
        losses.append(float(outputs["loss"]))
        states.append(net.hidden[0].detach().clone())

    net.on_train_batch_end = on_train_batch_end
    quick(max_epochs=12, gradient_clip_val=0.25).fit(net)
    assert sum(losses[-10:]) / 10 < 0.8 * losses[0]
    assert net.hidden is None  # the text begins again with the next epoch
    assert not torch.equal(states[0], states[1])
    log_probabilities, (hidden, cell) = net.model(torch.zeros(2, 5, dtype=torch.int64), net.model.init_hidden(2))
    assert log_probabilities.shape == (10, 12)
    assert torch.allclose(log_probabilities.exp().sum(1), torch.ones(10), atol=1e-5)
    assert hidden.shape == cell.shape == (1, 2, 16)
