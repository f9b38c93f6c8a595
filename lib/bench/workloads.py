"""Seeded workloads: prompts, their lengths, and the lengths of the answers.

A scheduler's gain depends on the lengths, so they are data here. The same seed gives the same requests on every
machine: the draws are those of Python's own generator, which does not change between versions. Introduced in chapter 3.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lib.core.sampling_params import SamplingParams
from lib.engine.prompts import chat_token_ids


@dataclass(frozen=True)
class Workload:
    """Requests that are there from the start. With `ignore_eos` each answer has exactly its `max_tokens` tokens."""

    name: str
    prompts: list[list[int]]
    max_tokens: list[int]
    ignore_eos: bool = True
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.prompts or len(self.prompts) != len(self.max_tokens):
            raise ValueError(
                f"max_tokens must have one entry per prompt and at least one, got {len(self.max_tokens)} "
                f"for {len(self.prompts)} prompts"
            )

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def params(self) -> list[SamplingParams]:
        """Greedy sampling parameters, one per prompt."""
        return [
            SamplingParams(max_tokens=n, temperature=0.0, ignore_eos=self.ignore_eos)
            for n in self.max_tokens
        ]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that can come of it: the max_model_len that it needs."""
        return max(len(prompt) + n for prompt, n in zip(self.prompts, self.max_tokens))


def fixed(n: int, length: int) -> list[int]:
    """n equal lengths."""
    return [_at_least("length", length, 1)] * _at_least("n", n, 1)


def uniform(n: int, low: int, high: int, seed: int) -> list[int]:
    """n lengths, each of low..high equally likely."""
    _ordered(low, high)
    rng = random.Random(f"uniform/{seed}")
    return [rng.randint(low, high) for _ in range(_at_least("n", n, 1))]


def log_normal(n: int, median: float, sigma: float, low: int, high: int, seed: int) -> list[int]:
    """n lengths whose logarithm is normal, cut off at low and high: many short ones and a few long, as answers are."""
    _ordered(low, high)
    if median <= 0 or sigma < 0:
        raise ValueError(f"median must be > 0 and sigma >= 0, got {median} and {sigma}")
    rng = random.Random(f"log-normal/{seed}")
    draws = [rng.lognormvariate(math.log(median), sigma) for _ in range(_at_least("n", n, 1))]
    return [min(high, max(low, round(draw))) for draw in draws]


def random_prompts(lengths: Sequence[int], vocab_size: int, seed: int) -> list[list[int]]:
    """Prompts of random token ids: no text, but exactly as long as asked."""
    _at_least("vocab_size", vocab_size, 1)
    rng = random.Random(f"prompts/{seed}")
    return [[rng.randrange(vocab_size) for _ in range(_at_least("lengths", n, 1))] for n in lengths]


def variable_length(vocab_size: int, n: int = 32, seed: int = 1) -> Workload:
    """Prompts of 16 to 96 tokens, answers log-normal with a mean of about 32 and at most 96 tokens."""
    return Workload(
        "variable lengths",
        random_prompts(uniform(n, 16, 96, seed), vocab_size, seed),
        log_normal(n, 24.0, 0.85, 1, 96, seed),
        seed=seed,
    )


def equal_length(
    vocab_size: int, n: int = 24, prompt: int = 8, output: int = 50, seed: int = 0
) -> Workload:
    """n prompts of one length whose answers have one length."""
    return Workload(
        "equal lengths",
        random_prompts(fixed(n, prompt), vocab_size, seed),
        fixed(n, output),
        seed=seed,
    )


def chat(tokenizer: Any, n: int, max_tokens: int) -> Workload:
    """The first n questions through the model's chat template; the model ends its answers itself."""
    if not 1 <= n <= len(QUESTIONS):
        raise ValueError(
            f"n must be >= 1 and <= {len(QUESTIONS)}, the questions there are, got {n}"
        )
    prompts = [
        chat_token_ids(tokenizer, [{"role": "user", "content": question}])
        for question in QUESTIONS[:n]
    ]
    return Workload("chat", prompts, fixed(n, max_tokens), ignore_eos=False)


QUESTIONS = (
    "What is the capital of France? Answer with one word.",
    "How do I boil an egg? Answer in one sentence.",
    "Translate 'good morning' into French.",
    "What is 2 + 2?",
    "Why is the sky blue?",
    "What is the opposite of hot? Answer with one word.",
    "Explain in two sentences what a computer does.",
    "Describe a forest in one sentence.",
    "Name a fruit.",
    "What is an atom? Answer in one short sentence.",
    "Which month comes after May? Answer with one word.",
    "Who are you?",
    "How many legs does a spider have? Answer with a number.",
    "Write a haiku about the sea.",
    "What is your name?",
    "Name three primary colours.",
    "Thank you, that is all.",
    "What is a noun?",
    "Say hello.",
    "Name two animals that live in the sea.",
    "Tell me a short story about a fox.",
    "Write one sentence about the moon.",
    "Give one reason to learn to cook.",
    "Is water wet? Answer yes or no.",
)


def _at_least(name: str, value: int, least: int) -> int:
    if value < least:
        raise ValueError(f"{name} must be >= {least}, got {value}")
    return value


def _ordered(low: int, high: int) -> None:
    if not 1 <= low <= high:
        raise ValueError(f"low and high must be 1 <= low <= high, got {low} and {high}")
