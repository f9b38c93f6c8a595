"""The sentences of chapter 9 that depend on what was measured.

Every function but `same_logits` takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a
Series, or None where it has none.

Introduced in chapter 9.
"""

from typing import Any

from lib.bench.findings.predictions import Prediction, with_causes
from lib.bench.findings.realistic import realistic_prompt
from lib.bench.findings.run_notes import of_record
from lib.bench.findings.values import (
    Measured,
    cell,
    listed,
    number,
    over,
    percent,
    scientific,
    times,
    value,
)
from lib.bench.findings.vocabulary import (
    ABOUT,
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


def _foretold(run: Any) -> str:
    """By what factor TTFT should fall with the longest shared beginning, beside the tokens."""
    series, gain = run["ttft_by_shared"], ttft_gain(run, "predicted")
    shared, found = (value(cell(series, name, -1)).middle for name in ("shared", "found"))
    prompt = (series.params or {}).get("prompt") if series is not None else None
    if gain is None or shared is None or found is None or not prompt or not 0 <= found < prompt:
        return missing("the factor by which TTFT should fall").sentence
    fewer = prompt / (prompt - found)
    factor = f"{gain:.1f}"
    should = f"should fall by a factor of {factor}"
    if gain <= 1 + ABOUT:
        should = f"should stay about the same (a factor of {factor})"
    if gain < 1 - ABOUT:
        should = f"should rise by a factor of {number(1 / gain)}"
    said = f"With {number(shared)} of {prompt} tokens shared, TTFT {should}."
    said += f" The tokens fall by a factor of {fewer:.0f}."
    if 1 + ABOUT < gain < fewer / (1 + ABOUT):
        said += (
            " The time falls less: reading the weights and starting each operation take the same "
            "time for any number of tokens."
        )
    return said


def ttft(run: Any) -> dict[str, str]:
    """The prediction of TTFT by shared length, and the sentences under its figure."""
    series = run["ttft_by_shared"]
    found = compare(
        cell(series, "ttft", -1), cell(series, "ttft", 0), "the longest hit", "the whole prompt"
    )
    gain = ttft_gain(run)
    verdict = versus_prediction(ttft_gain(run, "predicted"), gain, "×")
    met = goal_sentence(
        gain, f"a factor of {TTFT_GOAL:.0f}", gain is not None and gain >= TTFT_GOAL
    )
    return {
        "foretold_finding": of_record(run, _foretold(run)),
        "ttft_finding": of_record(run, f"{found.sentence} On the factor: {verdict}.{met}"),
    }


def same_logits(apart: float) -> dict[str, str]:
    """How far a prompt's log-probabilities are apart, computed whole and from cached blocks."""
    said = "are the same to the last bit"
    if apart > 0:
        said = f"differ by {scientific(apart, 1)} at most"
    return {"same_logits_finding": said}


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
    change = (
        f"{100 * extra:+.1f} %".replace("-", "−") if abs(extra) >= 0.0005 else "less than 0.1 %"
    )
    said = f"where nothing is shared, the cache changes the time by {change}"
    if spread > COST_GOAL and abs(extra) <= spread:
        text = (
            f"{said}, less than the {percent(spread)} by which the repeats of one engine differ, "
            "so this run cannot tell whether it costs more than the 1 % that was the goal"
        )
        return Finding(text, "cannot tell", 1 / gain)
    if extra < -COST_GOAL:
        text = (
            f"{said}: this run shows no cost, and the gain has another cause, since the cache "
            "found nothing"
        )
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
        best = _best(series, gains)
    hashing = value(cell(run["hashing"], "share", 0)).middle
    named = missing("the time of hashing").sentence
    if hashing is not None and hashing >= 0:
        named = f"Computing the names takes {share(hashing)} of that workload's time."
    return {
        "found_finding": of_record(run, _found(series), under_table=True),
        "best_finding": of_record(run, best),
        "cost_finding": of_record(run, cost(run).sentence),
        "hashing_finding": named,
        "same_finding": of_record(run, _same(series)),
    }


def _best(series: Series | None, gains: dict[str, float]) -> str:
    """The workload with the largest gain in time, beside its gain in tokens."""
    name = max(gains, key=gains.get)
    if gains[name] <= 1 + ABOUT:
        most = f"the largest factor is {number(gains[name])}, on “{name}”"
        return f"On no workload does the cache save more than a tenth of the time: {most}."
    fewer = over(_cell(series, name, "computed_without"), _cell(series, name, "computed_with"))
    said = f"The largest gain in time is on the workload “{name}”: {times(gains[name])}"
    if fewer is None:
        return f"{said}."
    said += f", with {times(fewer)} fewer tokens."
    if gains[name] < fewer / (1 + ABOUT):
        return (
            f"{said} The time falls less than the tokens: each step has a cost that does not "
            "depend on its number of tokens."
        )
    if gains[name] > fewer * (1 + ABOUT):
        return f"{said} The tokens explain only a part of this gain."
    return said


def _found(series: Series | None) -> str:
    """Whether the engine finds all tokens that can be found, on every workload."""
    rows = range(len(series["workload"]) if series and "workload" in series else 0)
    counts = [
        [value(cell(series, name, row)).middle for name in ("found", "ideal", "prompt_tokens")]
        for row in rows
    ]
    if not counts or None in sum(counts, []) or not all(total > 0 for *_, total in counts):
        return missing("the number of tokens that can be found").sentence
    worst = max(abs(found - ideal) / total for found, ideal, total in counts)
    if not worst:
        return "In each workload the engine finds all that can be found."
    return (
        "What the engine finds differs from what can be found by at most "
        f"{number(100 * worst)} % of a workload's prompt tokens."
    )


def _same(series: Series | None) -> str:
    pairs = [
        [value(cell(series, name, row)).middle for name in ("same_answers", "answers")]
        for row in range(len(series["workload"]) if series and "workload" in series else 0)
    ]
    if not pairs or None in sum(pairs, []):
        return missing("whether the answers are the same").sentence
    if all(same == of for same, of in pairs):
        return "All answers are the same with and without."
    return (
        "Some answers differ: rounding can decide between two tokens that are about equally good."
    )


def chat_lead(run: Any) -> float | None:
    """Output rate on the chat trace over the better rate of transformers.

    None where transformers was not asked.
    """
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
    return {"beside_finding": of_record(run, said + met, under_table=True)}


def leak(run: Any) -> dict[str, str]:
    """The sentences on the timing side channel, with and without a salt."""
    series = run["timing_side_channel"]
    wrong, right, salted = (
        _cell(series, name, "ttft")
        for name in ("wrong guess, no salt", "right guess, no salt", "right guess, own salts")
    )
    open_ = compare(right, wrong, "the right guess", "a wrong one")
    closed = compare(salted, wrong, "the right guess", "a wrong one")
    seen = {-1: ": the channel is open", 1: ", which no cache explains"}.get(
        open_.direction, ". The times of this run do not reveal the guess"
    )
    first = open_.sentence if open_.kind == "missing" else f"Without a salt {open_}{seen}."
    apart = {
        -1: ": this difference has another cause than a hit, since nothing was found",
        1: ", although neither finds anything: this difference has another cause",
    }
    second = f"With salts {closed}{apart.get(closed.direction, '')}."
    if closed.kind == "missing":
        second = closed.sentence
    return {"leak_finding": of_record(run, first), "salt_finding": of_record(run, second)}


def eviction(run: Any) -> dict[str, str]:
    """Which order of eviction that can be built finds most, at the size next to half the knee."""
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
            best = [f"“{n}”" for n, r in built.items() if r == max(built.values())]
            rates_said = listed([f"“{n}” {percent(r)}" for n, r in known.items()])
            text = f"With {sizes[row]} blocks the orders find these shares: {rates_said}. Of those "
            text += (
                f"that can be built, {listed(best)} {'finds' if len(best) == 1 else 'find'} most."
            )
    return {"eviction_finding": text}


def predictions(run: Any) -> list[Prediction]:
    """The chapter's predictions, for the table at its end."""
    series, pools = run["workloads"], run["hit_rate_by_pool"]
    rates = {
        name: over(_cell(series, "chat", name), _cell(series, "chat", "prompt_tokens"))
        for name in ("ideal", "found")
    }
    found = [
        Prediction(
            "TTFT, nothing found over most found, from the prompt curve",
            ttft_gain(run, "predicted"), ttft_gain(run), "", "×",
        ),
        Prediction(
            "hit rate of the chat trace, by counting", rates["ideal"], rates["found"], "", "",
        ),
        Prediction(
            "hit rate of the smallest pool, from stack distances",
            cell(pools, "predicted", 0), cell(pools, "hit_rate", 0), "", "",
        ),
    ]  # fmt: skip
    return with_causes(found)


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    measured = ttft(run) | workloads(run) | beside(run) | leak(run) | eviction(run)
    return measured | realistic_prompt.prefix()
