"""Structured outputs in the engine: valid texts, untouched neighbours, and constraints that survive everything."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lib import SamplingParams
from lib.core.errors import InvalidRequest
from lib.engine.structured import output_rules
from lib.engine.structured.constraints import AutomatonConstraint, num_common
from lib.engine.structured.grammars import GrammarConstraint
from lib.engine.structured.token_bytes import byte_level_alphabet
from tests.helpers import Tiny, check_books, check_empty, llama_checkpoint, prompt_of
from tests.scripted_drafts import Script, ScriptedProposer

MERGES = ["a b", "1 2", "ab c", '" :', "e s", "y es", "n o", '{ "', "t r", "u e", "tr ue", 'Ġ "']
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 2},
        "good": {"type": "boolean"},
    },
    "required": ["name", "good"],
    "additionalProperties": False,
}  # fmt: skip
KINDS = {
    "regex": ({"regex": r"(ab|cd)+\d{2,5}[^x]?"}, r"(?s)(ab|cd)+\d{2,5}[^x]?"),
    "choice": ({"choice": ["yes", "no", "not at all"]}, "yes|no|not at all"),
    "json": ({"json": SCHEMA}, None),
    "grammar": ({"grammar": 'start: "[" NUMBER "]" | "none"\nNUMBER: /[0-9]{1,4}/'}, r"\[[0-9]{1,4}\]|none"),
}  # fmt: skip


@pytest.fixture(scope="module")
def bytes_model(tmp_path_factory) -> Tiny:
    """A tiny Llama whose vocabulary is three special tokens, 256 bytes and a few merged tokens."""
    folder = tmp_path_factory.mktemp("bytes")
    names = ["<unk>", "<s>", "</s>", *byte_level_alphabet()]
    merges = [tuple(m.split(" ")) for m in MERGES]
    names += ["".join(m) for m in merges]
    backend = Tokenizer(models.BPE(vocab={n: i for i, n in enumerate(names)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    llama_checkpoint(folder, vocab_size=len(names) + 5)  # padded, as real vocabularies are
    tokenizer.save_pretrained(folder)
    return Tiny(folder)


def valid(kind: str, text: str) -> bool:
    pattern = KINDS[kind][1]
    if pattern is not None:
        return re.fullmatch(pattern, text) is not None
    value = json.loads(text)
    sizes = value.get("sizes", [])
    return (
        set(value) <= {"name", "sizes", "good"}
        and isinstance(value["name"], str)
        and len(value["name"]) <= 5
        and isinstance(value["good"], bool)
        and len(sizes) <= 2
        and all(0 <= size <= 99 for size in sizes)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_are_valid_where_the_reason_is_stop(bytes_model, kind, temperature):
    engine = bytes_model.engine(num_blocks=200)
    params = SamplingParams(
        n=6, max_tokens=60, temperature=temperature, seed=1, structured_outputs=KINDS[kind][0]
    )
    (output,) = engine.generate([[5, 6, 7]], params)
    reasons = {completion.finish_reason for completion in output.completions}
    assert reasons <= {"stop", "length"} and "stop" in reasons
    for completion in output.completions:
        if completion.finish_reason == "stop":
            assert valid(kind, completion.text), completion.text
    check_empty(engine)


def test_a_text_that_is_cut_off_says_length(bytes_model):
    engine = bytes_model.engine()
    params = SamplingParams(max_tokens=4, structured_outputs={"regex": r"\d{10}"}, seed=0)
    (output,) = engine.generate([[5]], params)
    assert output.finish_reason == "length" and re.fullmatch(r"\d+", output.text)


def test_the_end_needs_no_end_token_where_nothing_can_follow(bytes_model):
    engine = bytes_model.engine()
    params = SamplingParams(max_tokens=20, temperature=0, structured_outputs={"choice": ["yes"]})
    (output,) = engine.generate([[5]], params)
    assert output.text == "yes" and output.finish_reason == "stop"
    assert engine.config.eos_token_ids[0] not in output.token_ids


def test_neighbours_are_not_touched(bytes_model):
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    free = SamplingParams(max_tokens=12, temperature=0.8, seed=3, logprobs=2, ignore_eos=True)
    bound = SamplingParams(max_tokens=12, seed=4, structured_outputs=KINDS["json"][0])
    alone = bytes_model.engine().generate(prompts[::2], free)
    mixed = bytes_model.engine().generate(prompts, [free, bound, free])
    for one, other in zip(alone, mixed[::2]):
        assert one.token_ids == other.token_ids
        for a, b in zip(one.logprobs, other.logprobs):
            assert a.keys() == b.keys() and np.allclose([*a.values()], [*b.values()], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_change_nothing(bytes_model, kind):
    params = [
        SamplingParams(max_tokens=40, temperature=t, seed=s, structured_outputs=KINDS[kind][0])
        for t, s in ((0.0, 0), *((1.0 + s / 20, s) for s in range(1, 10)))
    ]
    prompts = [prompt_of(3 + seed, seed, 200) for seed in range(10)]
    expected = bytes_model.engine().generate(prompts, params)
    engine = bytes_model.engine()
    truth = {f"request-{i}": output.token_ids for i, output in enumerate(expected)}
    engine.drafter = Script(engine, truth, most=3, wrong=0.5, seed=1)
    for one, other in zip(expected, engine.generate(prompts, params)):
        assert one.token_ids == other.token_ids and one.finish_reason == other.finish_reason
    stats = engine.stats()
    assert 0 < stats["accepted_tokens"] < stats["draft_tokens"]
    check_empty(engine)


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_end_where_the_constraint_forbids_their_next_token(bytes_model, kind):
    params = SamplingParams(max_tokens=40, temperature=0, structured_outputs=KINDS[kind][0])
    prompts = [prompt_of(3 + seed, seed, 200) for seed in range(6)]
    expected = bytes_model.engine().generate(prompts, params)
    config = {"method": "ngram", "adaptive": False, "num_speculative_tokens": 5}
    engine = bytes_model.engine(speculative_config=config)
    truth = {f"request-{i}": output.token_ids for i, output in enumerate(expected)}
    vocab_size = engine.config.vocab_size
    engine.drafter.proposer = ScriptedProposer(truth, wrong=0.4, seed=1, vocab=vocab_size)
    verified = []
    add_drafts = engine.drafter.add_drafts

    def watched(scheduled):
        work = add_drafts(scheduled)
        verified.extend((item.request, tuple(item.draft_token_ids), list(item.request.output_token_ids)) for item in work)  # fmt: skip
        return work

    engine.drafter.add_drafts = watched
    for one, other in zip(expected, engine.generate(prompts, params)):
        assert one.token_ids == other.token_ids and one.finish_reason == other.finish_reason
    for request, drafts, output in verified:
        for n, token_id in enumerate(drafts):
            bits = np.unpackbits(request.constraint.allowed([*output, *drafts[:n]]), bitorder="little")  # fmt: skip
            assert bits[token_id]
    assert engine.stats()["accepted_tokens"] > 10
    check_empty(engine)


SPECULATION = {"method": "ngram", "prompt_lookup_min": 1, "num_speculative_tokens": 3, "adaptive": False}  # fmt: skip
jobs = st.lists(
    st.tuples(
        st.sampled_from([None, *KINDS]),  # structured outputs
        st.integers(0, 6),  # step before which it is queued
        st.integers(1, 12),  # prompt tokens
        st.integers(1, 30),  # max_tokens
        st.integers(0, 5),  # seed
        st.sampled_from([1, 1, 2]),  # n
        st.sampled_from([None, None, None, 2, 5]),  # aborted after so many steps
        st.sampled_from([None, ["3"], ["a"]]),  # stop strings
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=10, deadline=None)
@given(
    jobs,
    st.sampled_from([7, 20, 64]),
    st.sampled_from([3, 6, 40]),
    st.booleans(),
    st.sampled_from([None, SPECULATION]),
)
def test_random_traffic(bytes_model, work, budget, blocks, prefix_caching, speculative_config):
    """Tiny pools, chunks, preemptions, aborts, drafts: as alone, request by request."""
    options = dict(
        block_size=16,
        num_blocks=blocks + 1,
        enable_prefix_caching=prefix_caching,
        speculative_config=speculative_config,
    )
    engine = bytes_model.engine(max_num_batched_tokens=budget, max_num_seqs=3, **options)
    longest = 16 * blocks
    waiting, ends, outputs, requests = list(enumerate(work)), {}, {}, {}
    for step in range(2_000):
        while waiting and (waiting[0][1][1] <= step or not engine.has_unfinished()):
            index, (kind, _, length, max_tokens, seed, n, abort, stop) = waiting.pop(0)
            params = SamplingParams(
                n=n, max_tokens=min(max_tokens, longest - length), seed=seed, stop=stop,
                structured_outputs=None if kind is None else KINDS[kind][0],
            )  # fmt: skip
            prompt = prompt_of(length, seed, 200)
            name = engine.add_request(prompt, params)
            requests[name] = kind, prompt, params
            if abort is not None:
                ends[name] = step + abort
        for name in [name for name, end in ends.items() if end <= step]:
            if (aborted := engine.abort(name)) is not None:
                outputs[name] = aborted
            del ends[name]
        if not waiting and not engine.has_unfinished():
            break
        for output in engine.step():
            if output.finished:
                outputs[output.request_id] = output
        check_books(engine)
    check_empty(engine)
    alone = bytes_model.engine(num_blocks=200)
    for name, (kind, prompt, params) in requests.items():
        (expected,) = alone.generate([prompt], replace(params))
        for one, other in zip(outputs[name].completions, expected.completions):
            assert one.finish_reason in (other.finish_reason, "abort")
            assert one.token_ids == other.token_ids[: len(one.token_ids)]
            if one.finish_reason == "stop" and kind and not params.stop:
                assert valid(kind, one.text)


def test_bad_words_and_allowed_ids(bytes_model):
    engine = bytes_model.engine()
    letters = engine.tokenizer.convert_tokens_to_ids([*"bcdefghijklmnopq"])
    free = SamplingParams(max_tokens=30, temperature=0, ignore_eos=True, allowed_token_ids=letters)
    (before,) = engine.generate([[5, 6]], free)
    word = before.text[3:5]
    (after,) = engine.generate([[5, 6]], replace(free, bad_words=[word]))
    ids = engine.tokenizer.encode(word)
    runs = [after.token_ids[i : i + len(ids)] for i in range(30)]
    assert ids not in runs and before.token_ids != after.token_ids
    (output,) = engine.generate([[5, 6]], replace(free, allowed_token_ids=[40, 50]))
    assert set(output.token_ids) <= {40, 50}
    both = replace(free, ignore_eos=False, allowed_token_ids=[*range(52, 62)], structured_outputs={"regex": "[0-9a-z]{8}"})  # fmt: skip
    (output,) = engine.generate([[5, 6]], both)
    assert output.finish_reason in ("stop", "error") and set(output.token_ids) <= set(range(52, 62))


def test_a_request_without_any_allowed_token_fails_alone(bytes_model):
    engine = bytes_model.engine()
    params = SamplingParams(
        max_tokens=8, allowed_token_ids=[5], structured_outputs={"regex": "[0-9]{8}"}
    )
    fine = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    alone = bytes_model.engine().generate([[8, 9]], fine)
    failed, other = engine.generate([[5, 6], [8, 9]], [params, fine])
    assert failed.finish_reason == "error" and "constraints allow no token" in failed.error
    assert other.token_ids == alone[0].token_ids
    check_empty(engine)


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"regex": "("}, "regex must be a regular expression"),
        ({"json": "{"}, "json cannot be used"),
        ({"json": "[]"}, "must be an object"),
        ({"json": {"type": "nonsense"}}, "json cannot be used"),
        ({"json": {"type": "string", "format": "nonsense"}}, "json cannot be used"),
        ({"json": {"not": {"type": "string"}}}, "json cannot be used"),
        ({"json": {"$ref": "#/nowhere"}}, "json cannot be used"),
        ({"grammar": "start: nothing"}, "grammar cannot be used"),
        ({"json": '{"a":' * 5000 + "1" + "}" * 5000}, "json cannot be used"),
        ({"json": {"enum": ["x" * 99_000]}}, "at most 65,536 characters"),
        ({"regex": "(a|b)*a(a|b){24}"}, "at most 4,096 states"),
        ({"json": {"type": "string", "pattern": "^(a|b)*a(a|b){60}(c|d){900}$"}}, None),
        ({"grammar": "start: start start | \"a\""}, None),
    ],
)  # fmt: skip
def test_hostile_and_malformed_specifications_are_refused_or_run(bytes_model, spec, message):
    engine = bytes_model.engine()
    params = SamplingParams(max_tokens=3, structured_outputs=spec)
    if message is None:  # the library bounds its own work: refused, failed or cut off, but it ends
        try:
            (output,) = engine.generate([[5]], params)
        except InvalidRequest:
            return
        assert output.finish_reason in ("length", "error", "stop")
        return
    with pytest.raises(InvalidRequest, match=re.escape(message)) as refused:
        engine.add_request([5], params)
    assert refused.value.param == "structured_outputs"
    assert not engine.has_unfinished()


def test_without_the_library_json_is_refused_and_regex_is_not(bytes_model, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.setitem(sys.modules, "llguidance.hf", None)
    engine = bytes_model.engine()
    with pytest.raises(InvalidRequest, match="pip install llguidance"):
        engine.add_request([5], SamplingParams(structured_outputs={"json": {}}))
    engine.add_request([5], SamplingParams(structured_outputs={"regex": "a"}))


def test_without_a_tokenizer_structured_outputs_are_refused(tiny):
    engine = tiny["llama"].engine()
    with pytest.raises(InvalidRequest, match="must be None for a model without a tokenizer"):
        engine.add_request([5], SamplingParams(structured_outputs={"regex": "a"}))
    with pytest.raises(InvalidRequest, match="bad_words must be empty for a model without"):
        engine.add_request([5], SamplingParams(bad_words=["a"]))
    with pytest.raises(InvalidRequest, match="allowed_token_ids must be < 61, got 61"):
        engine.add_request([5], SamplingParams(allowed_token_ids=[5, 61]))
    with pytest.raises(InvalidRequest, match="logit_bias must have token ids < 61, got 61"):
        engine.add_request([5], SamplingParams(logit_bias={61: 1.0}))


def test_what_was_compiled_is_kept_and_the_oldest_goes(bytes_model, monkeypatch):
    monkeypatch.setattr(output_rules, "MAX_CACHED_SPECS", 2)
    engine = bytes_model.engine()
    rules, compiled = engine.output_rules, []
    compile_ = rules._compile
    monkeypatch.setattr(
        rules, "_compile", lambda *spec: compiled.append(spec[1]) or compile_(*spec)
    )
    for pattern in ("a", "b", "a", "c", "a", "b"):
        engine.add_request([5], SamplingParams(structured_outputs={"regex": pattern}))
    assert compiled == ["a", "b", "c", "b"]


def test_constraints_follow_any_order_of_questions(bytes_model):
    """Forwards, back, along rejected drafts: the answer depends on the tokens alone."""
    rules = bytes_model.engine().output_rules
    encode = bytes_model.engine().tokenizer.encode
    for kind, text in (("regex", "ababcd123"), ("json", '{"name": "ab", "good": true}')):
        params = SamplingParams(structured_outputs=KINDS[kind][0])
        tokens = encode(text)
        one = rules._constraint(params)
        assert isinstance(one, AutomatonConstraint if kind == "regex" else GrammarConstraint)
        for n in (0, 3, 1, 2, 4, 2, 5, 0, 6):
            assert np.array_equal(
                one.allowed(tokens[:n]), rules._constraint(params).allowed(tokens[:n])
            )
            assert one.allowed([*tokens[:n], 3, 3, 3]) is None  # a draft that is not allowed
        assert one.is_complete(tokens) == (kind == "json")


def test_num_common():
    assert num_common([1, 2, 3], [1, 2]) == 2
    assert num_common([1, 2], [1, 2, 3]) == 2
    assert num_common([1, 9, 3], [1, 2, 3]) == 1
    assert num_common([], [1]) == 0
