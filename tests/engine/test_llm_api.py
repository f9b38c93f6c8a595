"""The engine as its users meet it: arguments, errors, streams, and several of them at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib import LLM, SamplingParams
from lib.core.errors import InvalidRequest
from lib.engine.sampling import Sampler
from tests.helpers import VOCAB, Tiny, check_books, check_empty, drain, llama_checkpoint, prompt_of


def greedy(max_tokens: int, **changes) -> SamplingParams:
    return SamplingParams(
        **{"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, **changes}
    )


# Arguments.


@pytest.mark.parametrize(
    "options, message",
    [
        (
            dict(kv_cache="page"),
            r"kv_cache must be one of \['none', 'contiguous', 'paged'\], got 'page'",
        ),
        (dict(kv_cache=None), "kv_cache must be one of"),
        (dict(attention="flash"), "attention must be one of"),
        (dict(scheduler="fifo"), "scheduler must be one of"),
        (dict(max_num_seqs=0), "max_num_seqs must be an integer >= 1, got 0"),
        (dict(max_num_seqs=2.0), "max_num_seqs must be an integer >= 1, got 2.0"),
        (
            dict(max_num_batched_tokens=True),
            "max_num_batched_tokens must be an integer >= 1, got True",
        ),
        (dict(max_model_len=-1), "max_model_len must be an integer >= 1 or None, got -1"),
        (
            dict(max_model_len=513),
            "max_model_len must be <= 512, the positions the model knows, got 513",
        ),
        (dict(block_size="16"), "block_size must be an integer >= 1, got '16'"),
        (dict(num_blocks=0), "num_blocks must be an integer >= 1 or None, got 0"),
        (
            dict(num_blocks=None, kv_cache_memory_bytes=1.5),
            "kv_cache_memory_bytes must be an integer",
        ),
        (
            dict(kv_cache="contiguous", attention="gather"),
            "attention must be 'auto' unless kv_cache is 'paged'",
        ),
        (
            dict(kv_cache="none", num_blocks=8),
            "num_blocks must be None unless kv_cache is 'paged', got 8",
        ),
        (
            dict(kv_cache="none", kv_cache_memory_bytes=100),
            "kv_cache_memory_bytes must be None where kv_cache is 'none'",
        ),
        (dict(num_blocks=8, kv_cache_memory_bytes=100), "give one"),
        (dict(device="gpu"), "device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got 'gpu'"),
        (dict(device="mps"), "device must be"),
        (dict(device=None), "device must be"),
        (dict(device=3.5), "device must be"),
        (dict(device="cuda:99"), "cuda:99.*is not there: this machine has"),
        (
            dict(dtype="int8"),
            r"dtype must be 'auto' or one of \['float32', 'bfloat16', 'float16'\], got 'int8'",
        ),
        (dict(dtype=torch.int64), "dtype must be"),
        (dict(dtype=None), "dtype must be"),
        (dict(dtype="fp32"), "dtype must be"),
    ],
)
def test_engine_arguments_that_cannot_be_are_refused(llama, options, message):
    with pytest.raises(ValueError, match=message):
        LLM(llama.folder, **{"device": "cpu", **options})


def test_unknown_arguments_are_refused(llama):
    with pytest.raises(TypeError):
        LLM(llama.folder, tensor_parallel=2)


@pytest.mark.parametrize(
    "dtype, expected",
    [
        ("auto", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        (torch.bfloat16, torch.bfloat16),
        ("torch.float32", torch.float32),
    ],
)
def test_dtypes(llama, dtype, expected):
    engine = llama.engine(dtype=dtype)
    assert engine.dtype == engine.kv_cache.k.dtype == expected
    assert {p.dtype for p in engine.model.parameters()} == {expected}
    assert len(engine.generate([[5, 6]], greedy(3))[0].token_ids) == 3


def test_the_contract_in_one_piece(llama):
    engine = llama.engine()
    assert engine.weights == "real" and engine.tokenizer is None and engine.folder == llama.folder
    assert engine.device == torch.device("cpu") and engine.config.architecture == "llama"
    assert {"running", "waiting", "blocks_total", "blocks_free", "preemptions"} <= set(
        engine.stats()
    )
    output = engine.generate([[5, 6]], greedy(4, logprobs=2))[0]
    assert (
        output.prompt_token_ids == [5, 6] and output.text == "" and output.finish_reason == "length"
    )
    assert len(output.logprobs) == 4 and all(
        list(lp)[0] == t for lp, t in zip(output.logprobs, output.token_ids)
    )
    m = output.metrics
    assert (
        m.arrival_time <= m.first_scheduled_time <= m.first_token_time <= m.finish_time
        and m.num_preemptions == 0
    )


# Prompts.


@pytest.mark.parametrize(
    "prompt, message",
    [
        ([], "at least one token"),
        ("", "no tokenizer"),
        ("hi", "no tokenizer"),
        ([VOCAB], f"< {VOCAB}, got {VOCAB}"),
        ([-1], "got -1"),
        ([1.5], "got 1.5"),
        ([True], "got True"),
        (["a"], "got 'a'"),
        ([[1]], "got"),
        (None, "got None"),
        (5, "got 5"),
        ([5] * 600, "must be <="),
    ],
)
def test_prompts_that_cannot_be_are_refused_and_queue_nothing(llama, prompt, message):
    engine = llama.engine()
    with pytest.raises(ValueError, match=message):
        engine.add_request(prompt, greedy(3))
    with pytest.raises(ValueError, match=message):
        engine.generate([[5, 6], prompt], greedy(3))
    with pytest.raises(ValueError, match=message):
        engine.stream(prompt, greedy(3))
    check_empty(engine)


@pytest.mark.parametrize(
    "params, message",
    [
        ([], "one or one per prompt, got 0 for 2"),
        ([SamplingParams()] * 3, "one or one per prompt, got 3 for 2"),
        ({"max_tokens": 3}, "params must be SamplingParams or None"),
        ([SamplingParams(), None, None], "got 3 for 2"),
        (SamplingParams(stop="x"), "stop must be empty for a model without a tokenizer"),
        (SamplingParams(stop_token_ids=[VOCAB]), f"stop_token_ids must be < {VOCAB}, got {VOCAB}"),
        ([SamplingParams(), SamplingParams(max_tokens=10**6)], "must be <="),
    ],
)
def test_params_that_cannot_be_are_refused_and_queue_nothing(llama, params, message):
    engine = llama.engine()
    with pytest.raises(ValueError, match=message):
        engine.generate([[5, 6], [7]], params)
    check_empty(engine)


def test_generate_takes_one_prompt_or_many(llama):
    engine = llama.engine()
    assert engine.generate([]) == []
    assert engine.generate([5, 6], greedy(3))[0].token_ids == llama.greedy([5, 6], 3)
    assert engine.generate((5, 6), greedy(3))[0].token_ids == llama.greedy([5, 6], 3)
    many = engine.generate([[5, 6], [7]], [greedy(3), greedy(2)])
    assert [o.token_ids for o in many] == [llama.greedy([5, 6], 3), llama.greedy([7], 2)]
    assert len(engine.generate([[5, 6]])[0].token_ids) <= 16


def test_outputs_come_in_the_prompts_order(llama):
    engine = llama.engine(max_num_seqs=2)
    prompts = [prompt_of(3 + i, i) for i in range(7)]
    outputs = engine.generate(prompts, [greedy(1 + (5 * i) % 7) for i in range(7)])
    assert [o.prompt_token_ids for o in outputs] == prompts


def test_numpy_ids_are_ids(llama):
    engine = llama.engine()
    array = np.array([5, 6, 7])
    for prompt in (array, list(array), array.astype(np.int32), [np.int64(5), 6, np.uint8(7)]):
        for output in (
            engine.generate([prompt], greedy(3))[0],
            engine.generate(prompt, greedy(3))[0],
        ):
            assert output.token_ids == llama.greedy([5, 6, 7], 3)
            assert output.prompt_token_ids == [5, 6, 7]
            assert {type(i) for i in output.prompt_token_ids} == {int}
    stop = greedy(3, stop_token_ids=[np.int64(llama.greedy([5, 6, 7], 1)[0])])
    assert engine.generate([array], stop)[0].finish_reason == "stop"
    for bad in (np.array([5.0]), np.array([VOCAB]), np.array([True]), [np.int64(5), True]):
        with pytest.raises(InvalidRequest, match="prompt token ids must be integers"):
            engine.add_request(bad, greedy(3))
    check_empty(engine)


@pytest.mark.parametrize(
    "prompt, params, param, code",
    [
        ([], {}, "prompt", None),
        ([VOCAB], {}, "prompt", None),
        ([True], {}, "prompt", None),
        (None, {}, "prompt", None),
        ("text", {}, "prompt", None),
        ([5] * 510, dict(max_tokens=3), "prompt", "context_length_exceeded"),
        ([5], dict(max_tokens=512), "prompt", "context_length_exceeded"),
        ([5], dict(stop="x"), "stop", None),
        ([5], dict(stop_token_ids=[VOCAB]), "stop_token_ids", None),
        ([5], dict(temperature=-1), "temperature", None),
        ([5], dict(stop=[""]), "stop", None),
        ([5], dict(ignore_eos=1), "ignore_eos", None),
        ([5], dict(top_p=0), "top_p", None),
    ],
)
def test_a_refusal_carries_the_field_and_its_code(llama, prompt, params, param, code):
    engine = llama.engine()
    with pytest.raises(InvalidRequest) as error:
        engine.add_request(prompt, SamplingParams(**params))
    assert (error.value.param, error.value.code) == (param, code)
    check_empty(engine)


def test_refusals_of_ids_params_and_messages_carry_their_field(llama):
    engine = llama.engine()
    engine.add_request([5], greedy(2), "mine")
    for call, param in (
        (lambda: engine.add_request([5], greedy(2), "mine"), "request_id"),
        (lambda: engine.add_request([5], greedy(2), ""), "request_id"),
        (lambda: engine.add_request([5], {"n": 1}), "params"),
        (lambda: engine.generate([[5], [6]], [greedy(2)]), "params"),
        (lambda: engine.chat([{"role": "user", "content": "hi"}]), "messages"),
    ):
        with pytest.raises(InvalidRequest) as error:
            call()
        assert error.value.param == param and error.value.code is None
    assert len(drain(engine)) == 1


def test_more_logprobs_than_the_vocabulary_has_are_refused(tmp_path):
    tiny = Tiny(llama_checkpoint(tmp_path, seed=1, vocab_size=7))
    engine = tiny.engine()
    with pytest.raises(InvalidRequest, match="logprobs must be <= 7.*got 8") as error:
        engine.add_request([5], greedy(3, logprobs=8))
    assert error.value.param == "logprobs"
    check_empty(engine)
    output = engine.generate([[5]], greedy(3, logprobs=7))[0]
    assert all(len(row) == 7 for row in output.logprobs)


def test_params_are_copied_when_a_request_is_added(llama):
    engine, params = llama.engine(), greedy(2)
    engine.add_request([5, 6], params, "two")
    params.max_tokens = 6
    engine.add_request([5, 6], params, "six")
    params.max_tokens, params.temperature, params.logprobs = 100_000, 2.0, 3
    params.stop_token_ids.extend(range(VOCAB))
    stream = engine.stream([5, 6], params := greedy(4))
    params.max_tokens = 1
    done = drain(engine)
    assert done["two"].token_ids == llama.greedy([5, 6], 2) and done["two"].logprobs is None
    assert done["six"].token_ids == llama.greedy([5, 6], 6)
    assert [t for chunk in stream for t in chunk.token_ids] == llama.greedy([5, 6], 4)


def test_params_are_checked_again_when_a_request_is_added(llama):
    engine, params = llama.engine(), greedy(2)
    params.max_tokens = "many"
    with pytest.raises(InvalidRequest, match="max_tokens must be an integer >= 1, got 'many'"):
        engine.add_request([5, 6], params)
    check_empty(engine)


# Outputs.


def test_an_output_that_is_kept_does_not_change(texty):
    engine, kept = texty.engine(), []
    engine.add_request("a b c", greedy(9, logprobs=1, n=2))
    while engine.has_unfinished():
        kept += engine.step()
    whole = kept[-1]
    assert whole.finished and len(kept) == 9
    for steps, output in enumerate(kept, 1):  # looked at only now
        for completion in output.completions:
            assert completion.token_ids == whole.token_ids[:steps]
            assert completion.text == engine.tokenizer.decode(whole.token_ids[:steps])
            final = whole.completions[completion.index].logprobs
            assert completion.logprobs == final[:steps]
            assert completion.finish_reason == ("length" if steps == 9 else None)
        assert output.finished == (steps == 9) and output.prompt_token_ids == [3, 4, 5]
    kept[3].token_ids.append(0)
    assert whole.token_ids == texty.greedy([3, 4, 5], 9)


@pytest.mark.parametrize("length", [10, 400])
def test_a_step_copies_no_more_for_a_long_sequence(llama, monkeypatch, length):
    """What a step hands out is counted: the elements of the lists that it makes, however long prompt and output are."""
    engine = llama.engine()
    engine.add_request(prompt_of(length, 1), greedy(60))
    sizes = []
    for _ in range(40):
        (output,) = engine.step()
        (chunk,), (completion,) = output.chunks, output.completions
        made = [
            v for x in (chunk, completion) for v in vars(x).values() if isinstance(v, (list, str))
        ]
        request = engine.scheduler.running[0]
        sizes.append(sum(len(v) for v in made if v is not request.token_ids) - len("request-0"))
    assert set(sizes) == {1}
    assert output.token_ids == llama.greedy(prompt_of(length, 1), 40)


# Ids.


def test_request_ids(llama):
    engine = llama.engine()
    assert engine.add_request([5], greedy(2), "mine") == "mine"
    with pytest.raises(ValueError, match="request_id must be new, got 'mine'"):
        engine.add_request([6], greedy(2), "mine")
    for bad in ("", 3, ["x"]):
        with pytest.raises(ValueError, match="request_id must be a string"):
            engine.add_request([6], greedy(2), bad)
    assert engine.stats()["waiting"] == 1
    drain(engine)
    engine.add_request([6], greedy(2), "mine")  # free again
    engine.add_request([6], greedy(2), "request-0")
    assert engine.add_request([6], greedy(2)) != "request-0"
    assert len(drain(engine)) == 3
    check_empty(engine)


# Several users of one engine.


def test_step_delivers_what_ran_while_generate_did(llama):
    engine = llama.engine()
    engine.add_request([5, 6], greedy(3), "other")
    engine.generate([[7]], greedy(10))
    assert engine.has_unfinished(), "finished, but nobody got it yet"
    outputs = engine.step()
    assert [o.request_id for o in outputs] == ["other"] and outputs[0].finished
    assert outputs[0].token_ids == llama.greedy([5, 6], 3) == outputs[0].chunks[0].token_ids
    check_empty(engine)
    assert engine.step() == []


def test_a_stream_does_not_lose_tokens_to_step(llama):
    engine = llama.engine()
    stream = engine.stream([5, 6], greedy(8))
    got = next(stream).token_ids
    engine.add_request([7, 8, 9], greedy(4), "other")
    done = {}
    while engine.has_unfinished():
        done |= {o.request_id: o for o in engine.step() if o.finished}
    assert set(done) == {"other"} and done["other"].token_ids == llama.greedy([7, 8, 9], 4)
    got += [t for chunk in stream for t in chunk.token_ids]
    assert got == llama.greedy([5, 6], 8)
    check_empty(engine)


def test_streams_interleaved(llama):
    engine = llama.engine()
    prompts = [prompt_of(4, i) for i in range(3)]
    streams = {i: engine.stream(p, greedy(6 + i)) for i, p in enumerate(prompts)}
    got: dict[int, list] = {i: [] for i in streams}
    while streams:
        for i in list(streams):
            chunk = next(streams[i], None)
            if chunk is None:
                del streams[i]
            else:
                got[i].append(chunk)
    for i, prompt in enumerate(prompts):
        assert [t for chunk in got[i] for t in chunk.token_ids] == llama.greedy(prompt, 6 + i)
        assert [c.finish_reason for c in got[i]] == [None] * (len(got[i]) - 1) + ["length"]
    check_empty(engine)


def test_a_stream_nobody_reads_queues_nothing(llama):
    engine = llama.engine()
    stream = engine.stream([5, 6], greedy(8))
    assert not engine.has_unfinished()
    stream.close()
    check_empty(engine)


def test_closing_a_stream_frees_its_room(llama):
    engine = llama.engine()
    stream = engine.stream([5, 6], greedy(8))
    next(stream), next(stream)
    assert engine.stats()["running"] == 1
    stream.close()
    check_empty(engine)


def test_an_interrupted_generate_frees_everything_and_keeps_the_others(llama, monkeypatch):
    engine = llama.engine()
    engine.add_request([5, 6], greedy(6), "other")
    run, calls = engine.runner.run, []

    def interrupt(batch):
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(batch)

    monkeypatch.setattr(engine.runner, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([[7], [8, 9]], greedy(9, n=2))
    check_books(engine)
    assert engine.stats()["running"] == 1 and engine.stats()["waiting"] == 0
    assert drain(engine)["other"].token_ids == llama.greedy([5, 6], 6)
    check_empty(engine)


def test_an_interrupt_while_sampling_loses_no_token(llama, monkeypatch):
    engine, choose = llama.engine(), Sampler.choose
    engine.add_request([5, 6], greedy(6), "other")
    engine.step()
    monkeypatch.setattr(Sampler, "choose", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    monkeypatch.setattr(Sampler, "choose", choose)
    assert drain(engine)["other"].token_ids == llama.greedy([5, 6], 6)


def test_an_aborted_stream_ends(llama):
    engine = llama.engine()
    stream = engine.stream([5, 6], greedy(50))
    request_id = next(stream).request_id
    assert engine.abort(request_id).finish_reason == "abort"
    (last,) = stream
    assert last.finish_reason == "abort" and last.token_ids == [] and last.text == ""
    check_empty(engine)


def test_the_last_chunk_of_an_aborted_stream_holds_what_came_meanwhile(llama):
    engine = llama.engine()
    stream = engine.stream([5, 6], greedy(50))
    got = [next(stream)]
    engine.add_request([7], greedy(3))
    for _ in range(3):
        engine.step()
    engine.abort(got[0].request_id)
    got += stream
    assert [c.finish_reason for c in got] == [None] * (len(got) - 1) + ["abort"]
    assert [t for c in got for t in c.token_ids] == llama.greedy([5, 6], 4)
    check_empty(engine)


def test_step_outputs_hold_everything_so_far_and_what_is_new(llama):
    engine, seen = llama.engine(), []
    engine.add_request([5, 6], greedy(4, logprobs=1))
    while engine.has_unfinished():
        (output,) = engine.step()
        (chunk,) = output.chunks
        seen += chunk.token_ids
        assert output.token_ids == seen and len(chunk.logprobs) == len(chunk.token_ids) == 1
        assert chunk.finish_reason == output.finish_reason
    assert seen == llama.greedy([5, 6], 4)


# Text.


def test_text_of_a_word_level_model(texty):
    engine = texty.engine()
    output = engine.generate("a b c", greedy(6))[0]
    assert output.prompt == "a b c" and output.prompt_token_ids == [3, 4, 5]
    assert output.token_ids == texty.greedy([3, 4, 5], 6)
    assert output.text == engine.tokenizer.decode(output.token_ids)
    assert "".join(chunk.text for chunk in engine.stream("a b c", greedy(6))) == output.text


def test_stop_strings_end_the_request_and_the_text(texty):
    engine = texty.engine()
    whole = engine.generate("a b c", greedy(12))[0]
    for stop in {whole.text[i : i + n] for i in range(2, 9) for n in (1, 2, 3)}:
        output = engine.generate("a b c", greedy(12, stop=stop))[0]
        assert (
            output.finish_reason == "stop" and output.text == whole.text[: whole.text.index(stop)]
        )
        assert (
            len(output.token_ids) <= 12
            and output.token_ids == whole.token_ids[: len(output.token_ids)]
        )
        chunks = list(engine.stream("a b c", greedy(12, stop=["never", stop])))
        assert "".join(c.text for c in chunks) == output.text and chunks[-1].finish_reason == "stop"
    check_empty(engine)


def test_a_stop_string_across_min_tokens_ends_the_request(texty):
    """It begins in the last of min_tokens and ends after it: the text ends before it, as in vLLM."""
    engine = texty.engine()
    whole = engine.generate("a b c", greedy(12))[0]
    words = whole.text.split(" ")
    for minimum in range(1, 10):
        stop = f"{words[minimum - 1]} {words[minimum]}"
        end = whole.text.index(stop)
        if len(" ".join(words[: minimum - 1])) + (minimum > 1) != end:
            continue  # the same words came before
        output = engine.generate("a b c", greedy(12, stop=stop, min_tokens=minimum))[0]
        assert output.finish_reason == "stop" and output.text == whole.text[:end]
        assert output.token_ids == whole.token_ids[: minimum + 1]
        chunks = list(engine.stream("a b c", greedy(12, stop=stop, min_tokens=minimum)))
        assert "".join(c.text for c in chunks) == output.text
        output = engine.generate("a b c", greedy(12, stop=stop, min_tokens=minimum + 1))[0]
        assert len(output.token_ids) > minimum + 1, "it ended with min_tokens: too early"
    check_empty(engine)


def test_a_stop_id_is_a_token_but_not_text(texty):
    engine = texty.engine()
    whole = engine.generate("a b c", greedy(8))[0].token_ids
    output = engine.generate("a b c", greedy(8, stop_token_ids=[whole[5]]))[0]
    end = whole.index(whole[5])
    assert output.token_ids == whole[: end + 1] and output.text == engine.tokenizer.decode(
        whole[:end]
    )


def test_chat_needs_a_template(texty, llama):
    for engine in (texty.engine(), llama.engine()):
        with pytest.raises(ValueError, match="chat template"):
            engine.chat([{"role": "user", "content": "hi"}], greedy(3))


def test_empty_text_is_refused(texty):
    with pytest.raises(ValueError, match="at least one token"):
        texty.engine().generate("", greedy(3))
