"""What docs/models.md says of pruned Unigram and WordPiece vocabularies, on the library's encoders.

kprune refuses both. These are the reasons, and what a build of them could promise: pieces are
removed by hand here, and covered text keeps its encoding.
"""

from collections.abc import Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

UNK = "<unk>"
LETTERS = "abc"
TEXTS = st.text(LETTERS + "x", max_size=12)  # no piece has an x
# Few scores, so that paths are often equally good.
SCORES = st.sampled_from([-1.0, -2.0, -3.0])
PIECES = st.dictionaries(st.text(LETTERS, min_size=1, max_size=3), SCORES, min_size=3, max_size=12)


def unigram(pieces: Mapping[str, float]) -> Tokenizer:
    """A Unigram encoder whose `<unk>` has the best score, as a control token may have."""
    return Tokenizer(models.Unigram([(UNK, 0.0), *pieces.items()], unk_id=0))


def wordpiece(pieces: Sequence[str]) -> Tokenizer:
    vocab = {piece: n for n, piece in enumerate([UNK, *pieces])}
    return Tokenizer(models.WordPiece(vocab, unk_token=UNK))


@settings(max_examples=300)
@given(PIECES, st.sets(st.text(LETTERS, min_size=1, max_size=3)), TEXTS)
def test_covered_text_keeps_its_unigram_pieces_if_the_lowest_score_stays(
    pieces: dict[str, float], wanted: set[str], text: str
) -> None:
    """Ties and `<unk>` included: what is left is a subset of the paths, in the same order."""
    lowest = min(pieces, key=pieces.__getitem__)
    before = unigram(pieces).encode(text).tokens
    kept = {p: s for p, s in pieces.items() if p in wanted or p in before or p == lowest}
    assert unigram(kept).encode(text).tokens == before


def test_without_the_lowest_score_covered_text_changes() -> None:
    """`<unk>` is 10 below the lowest score. z costs 30: 5 pieces cost 15, a long one and x 1 + 40.

    Without z, `<unk>` costs 13, and the long piece and x 14.
    """
    pieces = {"a": -3.0, "ax": -3.0, "aaaaa": -1.0}
    assert unigram({**pieces, "z": -30.0}).encode("aaaaax").tokens == ["a", "a", "a", "a", "ax"]
    assert unigram(pieces).encode("aaaaax").tokens == ["aaaaa", "x"]


def test_what_a_pruned_unigram_vocabulary_cannot_spell_is_lost() -> None:
    assert unigram({"a": -1.0, "b": -1.0}).encode("ab").ids == [1, 2]
    assert 0 in unigram({"a": -1.0}).encode("ab").ids


@settings(max_examples=300)
@given(
    st.sets(st.text(LETTERS, min_size=1, max_size=3), min_size=3),
    st.sets(st.text(LETTERS, min_size=1, max_size=3)),
    TEXTS,
)
def test_covered_text_without_unknown_words_keeps_its_word_pieces(
    words: set[str], wanted: set[str], text: str
) -> None:
    """At each place the longest piece wins, and it is among the kept ones."""
    pieces = [*sorted(words), *(f"##{word}" for word in sorted(words))]
    before = wordpiece(pieces).encode(text).tokens
    kept = [p for p in pieces if p.removeprefix("##") in wanted or p in before]
    if UNK not in before:
        assert wordpiece(kept).encode(text).tokens == before


def test_a_word_that_was_unknown_can_become_known() -> None:
    """ab leaves c, which nothing spells there; without ab, a is followed by ##bc."""
    assert wordpiece(["a", "ab", "##bc"]).encode("abc").tokens == [UNK]
    assert wordpiece(["a", "##bc"]).encode("abc").tokens == ["a", "##bc"]
