"""Chat prompts whose answers repeat much of the prompt: editing, quoting, code, JSON.

The prompts were chosen for SmolLM2-135M-Instruct. A model of this size makes mistakes in these
tasks. What counts here is only that its answers repeat text of the prompt or of the answer itself.

Introduced in chapter 10.
"""

from __future__ import annotations

from typing import Any

from lib.bench.workloads import Workload, fixed
from lib.engine.prompts import chat_token_ids

_LIGHTHOUSE = (
    "The old lighthouse stands on a narrow cape north of the village. It was built in 1874 by a "
    "company of stonemasons from the south, who carried every block by boat. For ninety years a "
    "keeper lived in the small house beside it and lit the lamp at dusk. In 1964 the lamp became "
    "electric, and the keeper moved to the village. Today the house is a museum, and the lamp "
    "still turns every night."
)
_MISSPELT = (
    _LIGHTHOUSE.replace("village", "vilage").replace("narrow", "narow").replace("museum", "museeum")
)
_CODE = """def total_price(items, tax_rate):
    total = 0
    for item in items:
        total += item.price * item.quantity
    return total * (1 + tax_rate)


def average_price(items):
    total = 0
    for item in items:
        total += item.price
    return total / len(items)
"""
_JSON = (
    '{"name": "Ada Lovelace", "born": 1815, "city": "London", "languages": ["English", "French"], '
    '"works": [{"title": "Notes", "year": 1843}, {"title": "Letters", "year": 1992}]}'
)

# (kind, what the user asks). The four kinds follow each other in turn.
TASKS = (
    (
        "editing",
        f"Correct the spelling of this text and change nothing else.\n\n{_MISSPELT}",
    ),
    (
        "quoting",
        f"Summarise this text. Quote the important sentences word for word.\n\n{_LIGHTHOUSE}",
    ),
    (
        "code",
        "Add a docstring to each function of this Python code and return the whole code.\n\n"
        f"```python\n{_CODE}```",
    ),
    (
        "JSON",
        f'Return this JSON object with the key "city" renamed to "town".\n\n```json\n{_JSON}\n```',
    ),
    (
        "editing",
        'Rewrite the following text. Replace every "lighthouse" by "tower" and change nothing '
        f"else.\n\n{_LIGHTHOUSE}",
    ),
    (
        "quoting",
        "Quote the three most important sentences of this text word for word, each in quotation "
        f"marks.\n\n{_LIGHTHOUSE}",
    ),
    (
        "code",
        "Rename the variable `total` to `amount` in this Python code and return the whole code."
        f"\n\n```python\n{_CODE}```",
    ),
    (
        "JSON",
        "Format this JSON with one key per line and an indent of two spaces.\n\n"
        f"```json\n{_JSON}\n```",
    ),
)


def copying(tokenizer: Any, n: int, max_tokens: int) -> Workload:
    """The first n tasks as prompts in the model's chat template.

    They repeat from the first one where n exceeds their number. Raises ValueError where n < 1.
    """
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n}")
    prompts = [
        chat_token_ids(tokenizer, [{"role": "user", "content": TASKS[i % len(TASKS)][1]}])
        for i in range(n)
    ]
    return Workload("copying", prompts, fixed(n, max_tokens), ignore_eos=False)
