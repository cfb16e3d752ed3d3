import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.demos import Dictionary, SyntheticText, WikiText2, text, tokenize
from fulmen.trainer.errors import CheckpointError


@given(st.lists(st.sampled_from("abcdef")))
def test_a_word_has_one_number(words):
    dictionary = Dictionary()
    numbers = [dictionary.add_word(word) for word in words]
    assert [dictionary.idx2word[number] for number in numbers] == words
    assert len(dictionary) == len(set(words)) == len(set(numbers))


def test_a_file_is_read_word_by_word(tmp_path):
    (tmp_path / "wikitext-2.txt").write_text("a b a\n\nc\n")
    numbers, dictionary = tokenize(tmp_path / "wikitext-2.txt")
    assert [dictionary.idx2word[number] for number in numbers] == ["a", "b", "a", "<eos>", "<eos>", "c", "<eos>"]
    blocks = WikiText2(tmp_path, block_size=2, download=False)
    assert (len(blocks), blocks.vocab_size) == (2, 4)
    assert [block.tolist() for block in blocks[1]] == [[0, 2], [2, 2]]


def test_without_a_file_or_a_network_it_is_told(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="SyntheticText"):
        WikiText2(tmp_path, download=False)
    monkeypatch.setattr(text, "WIKITEXT2_URL", "http://127.0.0.1:1/none.txt")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(CheckpointError, match="could not be fetched"):
        WikiText2(tmp_path)


@given(st.integers(1, 20), st.integers(30, 200))
def test_made_up_text_is_the_same_for_the_same_seed_and_can_be_learned(block_size, num_words):
    made = SyntheticText(num_words, vocab_size=7, block_size=block_size)
    assert torch.equal(made.data, SyntheticText(num_words, vocab_size=7).data)
    assert not torch.equal(made.data, SyntheticText(num_words, vocab_size=7, seed=1).data)
    assert len(made.data) == num_words
    for word in range(7):
        followers = set(made.data[1:][made.data[:-1] == word].tolist())
        assert len(followers) <= 3
    for index in range(len(made)):
        words, following = made[index]
        assert torch.equal(words[1:], following[:-1])
