import torch
from torch.utils.data import Subset

from fulmen.trainer.demos import LightningTransformer, PositionalEncoding, SyntheticText, Transformer


def test_no_word_sees_a_later_one():
    torch.manual_seed(0)
    net = Transformer(vocab_size=9, ninp=8, nhead=2, nhid=8).eval()
    words = torch.randint(9, (1, 12))
    inputs, target = words[:, :-1], words[:, 1:]
    before = net(inputs, target)
    assert torch.allclose(before.exp().sum(1), torch.ones(11), atol=1e-5)
    for position in range(1, 12):
        changed = words.clone()
        changed[0, position] = (changed[0, position] + 1) % 9
        after = net(changed[:, :-1], changed[:, 1:])
        same = torch.isclose(before, after, atol=1e-5).all(1)
        assert same[:position].all()
        assert position == 11 or not same[position:].all()


def test_where_a_word_stands_counts():
    encoding = PositionalEncoding(6, dropout=0.0, max_len=20)
    places = encoding(torch.zeros(1, 20, 6))[0]
    assert len({tuple(place.tolist()) for place in places}) == 20
    assert list(encoding.state_dict()) == []
    assert PositionalEncoding(5)(torch.zeros(1, 3, 5)).shape == (1, 3, 5)


def test_it_learns(quick):
    torch.manual_seed(0)
    net = LightningTransformer(
        vocab_size=10, text=Subset(SyntheticText(2_000, vocab_size=10, block_size=12), range(100))
    )
    net.model = Transformer(vocab_size=10, ninp=16, nhead=2, nhid=16, nlayers=1, dropout=0.0)
    losses = []
    net.on_train_batch_end = lambda outputs, batch, batch_idx: losses.append(float(outputs["loss"]))
    quick(max_epochs=2).fit(net)
    assert sum(losses[-20:]) / 20 < 0.8 * losses[0]
