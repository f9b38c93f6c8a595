"""The sentences of chapter 13 on two replicas behind a router, and on the simulator's prediction of them.

Introduced in chapter 13.
"""

from collections.abc import Mapping
from typing import Any

from lib.bench.findings.many_machines.fleet_rows import number_of
from lib.bench.findings.values import (
    cell,
    cell_of,
    number,
    over,
    percent,
    times,
    times_between,
    value,
)
from lib.bench.findings.vocabulary import compare, missing, size_of
from lib.bench.records.series import Series

SIMULATOR_GOAL, HIT_GOAL = 0.20, 0.9
FEW_ROWS = 32  # most tokens of a step that chapter 8's kernel for few rows computes
KERNELS = (
    f"The engine computes the layers with one kernel for up to {FEW_ROWS} tokens and with another one for more "
    "(chapter 8)."
)
POLICIES = ("round_robin", "power_of_two", "longest_prefix")


def steps(run: Any) -> dict[str, str]:
    """The sentence under the figure of the calibration: how far a straight line is from the measured steps."""
    series = run["step_times"]
    rows = range(len(series["tokens"]) if series is not None and "tokens" in series else 0)
    ratios = {}
    for row in rows:
        ratio = over(number_of(series, row, "seconds"), number_of(series, row, "line"))
        tokens = value(cell(series, "tokens", row)).middle
        if ratio is not None and tokens is not None and tokens > 0:
            ratios[tokens] = ratio
    if not ratios:
        said = missing("the times of steps").sentence
        return {"steps_finding": said, "kernels_finding": KERNELS}
    tokens = max(ratios, key=lambda n: (max(ratios[n], 1 / ratios[n]), n))
    distance = max(ratios[tokens], 1 / ratios[tokens])
    said = f"The straight line is within {percent(distance - 1)} of the measured times."
    if size_of(distance) != "about":
        count = f"{number(tokens)} token{'s' * (tokens != 1)}"
        said = (
            f"The straight line is farthest from the measured times at {count}: such a step takes "
            f"{times(ratios[tokens])} as long as the line says."
        )
    return {"steps_finding": said, "kernels_finding": f"{KERNELS}{_by_kernel(ratios)}"}


def _by_kernel(ratios: Mapping[float, float]) -> str:
    """Measured over line on both sides of the change of kernel; empty where one side has no steps."""
    few = [ratio for tokens, ratio in ratios.items() if tokens <= FEW_ROWS]
    many = [ratio for tokens, ratio in ratios.items() if tokens > FEW_ROWS]
    if not few or not many:
        return ""
    return (
        f" The steps of up to {FEW_ROWS} tokens take {times_between(min(few), max(few))} as long as the line says, "
        f"those of more tokens {times_between(min(many), max(many))}. How much of the distance comes from the kernels "
        "was not measured."
    )


def affinity(run: Any) -> float | None:
    """Hit rate of the longest prefix's policy over that of one replica with the whole trace."""
    series = run["policies"]
    alone = (series.params or {}).get("one_replica") if series is not None else None
    return over(number_of(series, "longest_prefix", "hit_rate"), alone)


def trace(series: Series | None) -> str:
    """What the trace has, and what one replica with all of it would find."""
    params = (series.params or {}) if series is not None else {}
    names = ("requests", "beginnings", "shared", "one_replica")
    requests, beginnings, shared, rate = (value(params.get(name)).middle for name in names)
    if None in (requests, beginnings, shared, rate):
        return missing("the hit rate of one replica").sentence
    return (
        f"The trace has {number(requests)} requests with {number(beginnings)} beginnings of {number(shared)} tokens. One "
        f"replica with the whole trace would find {percent(rate)} of the prompt tokens in its cache: each beginning "
        "except the first time that it comes."
    )


def policies(run: Any) -> dict[str, str]:
    """The sentences under the table of the routers."""
    series = run["policies"]
    rates = {name: number_of(series, name, "hit_rate") for name in POLICIES}
    hits = missing("the hit rate of the policies").sentence
    if None not in rates.values():
        said = ", ".join(
            f"{percent(rate)} with {name.replace('_', ' ')}" for name, rate in rates.items()
        )
        hits = f"Two replicas find {said}."
        reached = affinity(run)
        if reached is not None:
            verb = "reaches" if reached >= HIT_GOAL - 1e-9 else "does not reach"
            hits += (
                f" Longest prefix has {percent(reached)} of the rate of one replica with the whole trace, and "
                f"{verb} the goal of {percent(HIT_GOAL)}."
            )
    found = compare(
        cell_of(series, "longest_prefix", "ttft"), cell_of(series, "round_robin", "ttft"),
        "the median first token with longest prefix", "that with round robin",
    )  # fmt: skip
    worst = simulator_error(run)
    if worst is None:
        simulated = missing("the simulator beside the replicas").sentence
    else:
        within = "within" if worst <= SIMULATOR_GOAL else "not within"
        simulated = (
            f"The simulator's median TTFT differs from the measured one by {_off(worst)} at most, "
            f"{within} the {percent(SIMULATOR_GOAL)} that was the goal."
        )
    return {
        "trace_finding": trace(series),
        "hits_finding": hits,
        "ttft_finding": found.sentence,
        "simulator_finding": simulated,
    }


def simulator_error(run: Any, column: str = "predicted_ttft") -> float | None:
    """Largest |predicted / measured - 1| of the median TTFT over the policies. column: which prediction."""
    series = run["policies"]
    rows = len(series["policy"]) if series is not None and "policy" in series else 0
    ratios = [over(number_of(series, r, column), number_of(series, r, "ttft")) for r in range(rows)]
    errors = [abs(ratio - 1) for ratio in ratios if ratio is not None]
    return max(errors, default=None)


def first_prediction(run: Any) -> dict[str, str]:
    """What became of the prediction with a straight line, and what is left with the trace's own steps."""
    series = run["policies"]
    line, measured, own = (
        simulator_error(run, column) for column in ("line_ttft", "predicted_ttft", "own_steps_ttft")
    )
    params = (series.params or {}) if series is not None else {}
    by_line, by_steps = (
        value(params.get(name)).middle for name in ("steps_over_line", "steps_over_measured")
    )
    said = missing("the prediction with a straight line").sentence
    if None not in (line, measured):
        verb = "misses" if line > SIMULATOR_GOAL else "reaches"
        said = (
            "With a straight line for the time of a step, the simulated median TTFT differs from the measured one by "
            f"{_off(line)} at most, and {verb} the goal. With the measured times of steps the difference is "
            f"{_off(measured)} at most."
        )
        if by_line and by_steps and min(by_line, by_steps) > 0:
            said += (
                f" The trace's steps together took {_longer(by_line)} the line says, and "
                f"{_longer(by_steps)} the calibration's steps say."
            )
    left = missing("the prediction with the trace's own steps").sentence
    if own is not None:
        left = (
            "If the simulator gets the times of the trace's own steps, afterwards, the difference is "
            f"{percent(own)} at most: that part does not come from the times of the calibration."
        )
        shares = [number_of(series, name, "same_replica") for name in POLICIES]
        if None not in shares and min(shares) < 1:
            left += (
                f" The router's choices can add to it: with {POLICIES[shares.index(min(shares))].replace('_', ' ')}, "
                f"{percent(min(shares))} of the requests went to the replica that the simulator chose. A step that ends a "
                "little earlier or later changes the loads that the router sees."
            )
    return {
        "line_finding": said,
        "amplified_finding": _amplified(series),
        "own_steps_finding": left,
    }


def _off(error: float) -> str:
    """An error in percent, with one decimal where it would read as the goal and misses it."""
    text = percent(error)
    return (
        f"{100 * error:.1f} %"
        if error > SIMULATOR_GOAL and text == percent(SIMULATOR_GOAL)
        else text
    )


def _longer(ratio: float) -> str:
    """ "14 % more time than", "3 % less time than", "the time that"."""
    if ratio == 1:
        return "the time that"
    return f"{percent(abs(ratio - 1))} {'more' if ratio > 1 else 'less'} time than"


def _amplified(series: Series | None) -> str:
    """How the simulated median TTFT grows if each step takes 10 % longer."""
    rows = range(len(series["policy"]) if series is not None and "policy" in series else 0)
    ratios = [
        over(number_of(series, row, "slower_ttft"), number_of(series, row, "predicted_ttft"))
        for row in rows
    ]
    known = [ratio for ratio in ratios if ratio is not None]
    if not known:
        return missing("the effect of slower steps").sentence
    low, high = min(known), max(known)
    ends = [percent(low - 1), percent(high - 1)]
    if low < 1:
        between = f"{times(low)} to {times(high)} as long, depending on the policy"
    elif ends[0] == ends[1]:
        between = f"{ends[0]} longer with each policy"
    else:
        between = f"{ends[0]} to {ends[1]} longer, depending on the policy"
    said = f"If each step takes 10 % longer, the simulated median TTFT is {between}."
    if low > 1.1:
        said += " A queue enlarges an error in the time of a step, because each request also waits for those before it."
    return said
