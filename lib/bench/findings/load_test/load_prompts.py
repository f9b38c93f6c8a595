"""The gain by the length of the prompts, and what a longer prompt adds to a request.

Each function takes a run; most return sentences of chapter 6.

Introduced in chapter 6.
"""

from typing import Any

from lib.bench.findings.curves import trend
from lib.bench.findings.load_test.load_rows import CONTIGUOUS, NAMES, SEQUENTIAL, labels
from lib.bench.findings.values import cell, column, number, positive, quantity
from lib.bench.findings.vocabulary import missing


def prompts(run: Any) -> dict[str, str]:
    """Whether the gain depends on the prompts, and why."""
    series = run["gain_by_length"]
    lengths, gains = labels(series, "prompt"), column(series, "gain")
    if None in lengths:
        return {"prompts_finding": missing("the length of the prompts").sentence}
    shape = trend(lengths, gains, "×")
    if shape.kind == "missing" or not lengths:
        return {"prompts_finding": missing("the gain by length of the prompt").sentence}
    said = f"As the prompt grows from {number(lengths[0])} to {number(lengths[-1])} tokens, the gain {shape}"
    said = said.replace(" ×", " times")
    if shape.kind != "cannot tell":
        said += ", as expected" if shape.kind == "falls" else ", so the expectation failed"
    extra = prompt_cost(run)
    if extra is None:
        return {"prompts_finding": f"{said}."}
    alone, shared = extra
    costs = (
        f"The longer prompt adds {quantity(alone, 's')} to a request at {NAMES[SEQUENTIAL]} and "
        f"{quantity(shared, 's')} per request at {NAMES[CONTIGUOUS]}"
    )
    if shape.kind == "falls" and shared > 0.5 * alone > 0:
        costs += ": the tokens of a prompt are computed for one sequence, so a batch shares little of this work"
    return {"prompts_finding": f"{said}. {costs}."}


def request_time(run: Any, server: str, row: int) -> float | None:
    """Seconds per request at full load: tokens of an answer over tokens per second."""
    series = run["gain_by_length"]
    answer = None if series is None else series.params.get("answer")
    got = positive(cell(series, server, row))
    return answer / got if answer and got else None


def prompt_cost(run: Any) -> tuple[float, float] | None:
    """Seconds that the longest prompt adds to a request over the shortest: (sequential, contiguous)."""
    costs = []
    for name in (SEQUENTIAL, CONTIGUOUS):
        short, long = (request_time(run, name, row) for row in (0, -1))
        if short is None or long is None or long <= short:
            return None
        costs.append(long - short)
    return costs[0], costs[1]


def long_prompt_gain(run: Any) -> tuple[float | None, float | None]:
    """Batching gain with the longest prompts: predicted, if both servers pay a prompt alike; and measured."""
    series, extra = run["gain_by_length"], prompt_cost(run)
    measured = positive(cell(series, "batching", -1))
    long, short = request_time(run, SEQUENTIAL, -1), request_time(run, CONTIGUOUS, 0)
    if extra is None or long is None or short is None:
        return None, measured
    return long / (short + extra[0]), measured
