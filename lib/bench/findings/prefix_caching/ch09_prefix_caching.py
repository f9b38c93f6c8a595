"""The sentences of chapter 9 that depend on what was measured.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None where it has none.

Introduced in chapter 9.
"""

from typing import Any

from lib.bench.findings.predictions import Prediction
from lib.bench.findings.realistic import realistic_prompt
from lib.bench.findings.values import Measured, cell, over, percent, times, value
from lib.bench.findings.vocabulary import (
    Finding,
    compare,
    goal_sentence,
    missing,
    share,
    versus_prediction,
)
from lib.bench.records.series import Series

TTFT_GOAL, COST_GOAL, CHAT_GOAL = 8.0, 0.01, 1.5


def _row(series: Series | None, name: str) -> int | None:
    """The row whose first column is `name`; None where there is none."""
    names = next(iter(series.columns.values()), []) if series is not None else []
    return names.index(name) if name in names else None


def _cell(series: Series | None, name: str, column: str) -> Measured:
    row = _row(series, name)
    return None if row is None else cell(series, column, row)


def ttft_gain(run: Any, column: str = "ttft") -> float | None:
    """TTFT with nothing found over TTFT with the most found."""
    series = run["ttft_by_shared"]
    return over(cell(series, column, 0), cell(series, column, -1))


def ttft(run: Any) -> dict[str, str]:
    """The sentences under the figure of TTFT by shared length."""
    series = run["ttft_by_shared"]
    found = compare(
        cell(series, "ttft", -1), cell(series, "ttft", 0), "the longest hit", "the whole prompt"
    )
    gain = ttft_gain(run)
    verdict = versus_prediction(ttft_gain(run, "predicted"), gain, "×")
    met = goal_sentence(
        gain, f"a factor of {TTFT_GOAL:.0f}", gain is not None and gain >= TTFT_GOAL
    )
    return {"ttft_finding": f"{found.sentence} On the factor: {verdict}.{met}"}


def _gain(series: Series | None, name: str) -> float | None:
    return over(_cell(series, name, "without"), _cell(series, name, "with"))


def cost(run: Any) -> Finding:
    """What the cache costs where it finds nothing, as a share of the time without it.

    kind: "within", "above", "cannot tell" (the repeats differ by more than the cost) or "missing".
    """
    series = run["workloads"]
    pair = [value(_cell(series, "nothing shared", name)) for name in ("without", "with")]
    gain = _gain(series, "nothing shared")
    if gain is None:
        return missing("the cost of a cache that finds nothing")
    extra = 1 / gain - 1
    spread = max(v.spread or 0.0 for v in pair)
    said = f"where nothing is shared, the cache changes the time by {100 * extra:+.1f} %"
    if spread > COST_GOAL and abs(extra) <= spread:
        text = f"{said}, less than the {percent(spread)} by which the repeats of one engine differ, so this run cannot tell"
        return Finding(text, "cannot tell", 1 / gain)
    if extra < -COST_GOAL:
        text = f"{said}: this run shows no cost, and the gain has another cause, since the cache found nothing"
        return Finding(text, "within", 1 / gain, -1)
    if extra <= COST_GOAL:
        return Finding(f"{said}, within the 1 % that was the goal", "within", 1 / gain)
    return Finding(f"{said}, more than the 1 % that was the goal", "above", 1 / gain, 1)


def workloads(run: Any) -> dict[str, str]:
    """The sentences under the table of workloads."""
    series = run["workloads"]
    names = ("chat", "system prompt", "few-shot")
    gains = {name: gain for name in names if (gain := _gain(series, name)) is not None}
    if not gains:
        best = missing("the gain on the three workloads").sentence
    else:
        name = max(gains, key=gains.get)
        fewer = over(_cell(series, name, "computed_without"), _cell(series, name, "computed_with"))
        best = f"The largest gain in time is on the workload “{name}”: {times(gains[name])}"
        best += "." if fewer is None else f", with {times(fewer)} fewer tokens."
        if fewer is not None and gains[name] < fewer / 1.1:
            best += " The rest of the time is decoding, or a step's fixed cost."
    hashing = value(cell(run["hashing"], "share", 0)).middle
    named = missing("the time of hashing").sentence
    if hashing is not None and hashing >= 0:
        named = f"Computing the names takes {share(hashing)} of that workload's time."
    return {
        "best_finding": best,
        "cost_finding": cost(run).sentence,
        "hashing_finding": named,
        "same_finding": _same(series),
    }


def _same(series: Series | None) -> str:
    pairs = [
        [value(cell(series, name, row)).middle for name in ("same_answers", "answers")]
        for row in range(len(series["workload"]) if series and "workload" in series else 0)
    ]
    if not pairs or None in sum(pairs, []):
        return missing("whether the answers are the same").sentence
    if all(same == of for same, of in pairs):
        return "All answers are the same with and without."
    return "Some answers differ. Where that is so, two tokens were equally good up to rounding."


def chat_lead(run: Any) -> float | None:
    """Output rate on the chat trace over the better rate of transformers; None where it was not asked."""
    series = run["chat_beside_transformers"]
    ours = _cell(series, "ours", "tok_s")
    names = ("generate_batch", "generate_batch, sharing")
    rates = [r for n in names if (r := value(_cell(series, n, "tok_s")).middle) and r > 0]
    return over(ours, max(rates)) if rates else None


def beside(run: Any) -> dict[str, str]:
    """The sentence under the table beside transformers."""
    lead = chat_lead(run)
    if lead is None:
        return {"beside_finding": missing("transformers on the chat trace").sentence}
    said = f"This engine has {times(lead)} the throughput of the better of the two."
    met = goal_sentence(lead, f"{CHAT_GOAL} times", lead >= CHAT_GOAL)
    return {"beside_finding": said + met}


def leak(run: Any) -> dict[str, str]:
    """The sentences on the timing side channel, with and without a salt."""
    series = run["timing_side_channel"]
    wrong, right, salted = (
        _cell(series, name, "ttft")
        for name in ("wrong guess, no salt", "right guess, no salt", "right guess, own salts")
    )
    open_ = compare(right, wrong, "the right guess", "a wrong one")
    closed = compare(salted, wrong, "the right guess", "a wrong one")
    seen = {-1: "the channel is open", 1: "which no cache explains"}.get(
        open_.direction, "so the times of this run do not reveal the guess"
    )
    first = open_.sentence if open_.kind == "missing" else f"Without a salt {open_}: {seen}."
    apart = {-1: ": this difference has another cause than a hit, since nothing was found"}
    second = f"With salts {closed}{apart.get(closed.direction, '')}."
    if closed.kind == "missing":
        second = closed.sentence
    return {"leak_finding": first, "salt_finding": second}


def eviction(run: Any) -> dict[str, str]:
    """Which order of eviction that can be built finds most, at the size closest to half the knee."""
    series, pools = run["eviction_orders"], run["hit_rate_by_pool"]
    text = missing("the hit rate of the orders").sentence
    if series is not None and "pool" in series and pools is not None:
        sizes, half = series["pool"], (pools.params or {}).get("knee", 0) / 2
        row = min(range(len(sizes)), key=lambda i: abs((sizes[i] or 0) - half))
        names = [
            "least recent, tail first",
            "least recent, head first",
            "oldest first",
            "random",
            "knows the future",
        ]
        rates = {n: value(cell(series, n, row)).middle for n in names if n in series}
        known = {n: r for n, r in rates.items() if r is not None and r > 0}
        built = {n: r for n, r in known.items() if n != "knows the future"}
        if len(known) == len(names):
            winner = max(built, key=built.get)
            listed = ", ".join(f"{n} {percent(r)}" for n, r in known.items())
            text = f"With {sizes[row]} blocks they find: {listed}. Of those that can be built, “{winner}” finds most."
    return {"eviction_finding": text}


def predictions(run: Any) -> list[Prediction]:
    """The chapter's predictions, for the table at its end."""
    series, pools = run["workloads"], run["hit_rate_by_pool"]
    rates = {
        name: over(_cell(series, "chat", name), _cell(series, "chat", "prompt_tokens"))
        for name in ("ideal", "found")
    }
    return [
        Prediction(
            "TTFT, nothing found over most found, from the prompt curve",
            ttft_gain(run, "predicted"), ttft_gain(run), "", "×",
        ),
        Prediction("hit rate of the chat trace, by counting", rates["ideal"], rates["found"], "", ""),
        Prediction(
            "hit rate of the smallest pool, from stack distances",
            cell(pools, "predicted", 0), cell(pools, "hit_rate", 0), "", "",
        ),
    ]  # fmt: skip


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    measured = ttft(run) | workloads(run) | beside(run) | leak(run) | eviction(run)
    return measured | realistic_prompt.prefix()
