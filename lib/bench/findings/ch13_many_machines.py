"""The sentences of chapter 13 that depend on what was measured or simulated.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None where it has none.

Introduced in chapter 13.
"""

from typing import Any

from lib.bench.findings.predictions import Prediction
from lib.bench.findings.values import Measured, cell, number, percent, quantity, times, value
from lib.bench.findings.vocabulary import compare, missing
from lib.bench.records.series import Series

SIMULATOR_GOAL, HIT_GOAL = 0.20, 0.9
ONE, THREADS, PROCESSES = (
    "one process, one thread",
    "one process, two threads",
    "two processes, one thread each",
)


def _cell(series: Series | None, name: str, column: str) -> Measured:
    """The cell of `column` in the row whose first column is `name`; None where there is none."""
    names = next(iter(series.columns.values()), []) if series is not None else []
    return cell(series, column, names.index(name)) if name in names else None


def _number(series: Series | None, row: int | str, column: str) -> float | None:
    """A cell's middle, by row number or first column; None where it is not above zero or was not measured."""
    found = cell(series, column, row) if isinstance(row, int) else _cell(series, row, column)
    middle = value(found).middle
    return middle if middle is not None and middle > 0 else None


def _over(a: float | None, b: float | None) -> float | None:
    return a / b if a and b and a > 0 and b > 0 else None


def setups(run: Any) -> dict[str, str]:
    """Threads against processes: the sentence under the first table."""
    series = run["threads_or_processes"]
    one, threads, processes = (_number(series, name, "seconds") for name in (ONE, THREADS, PROCESSES))  # fmt: skip
    if None in (one, threads, processes):
        return {"setups_finding": missing("the time of threads and of processes").sentence}
    gain = (
        f"With a second thread the job is {times(one / threads)} as fast as with one, "
        f"and with a second process {times(one / processes)}."
    )
    found = compare(
        _cell(series, PROCESSES, "seconds"), _cell(series, THREADS, "seconds"),
        "the job with two processes", "that with two threads",
    )  # fmt: skip
    return {"setups_finding": f"{gain} {found.sentence}"}


def amdahl(run: Any) -> dict[str, str]:
    """The sentence under the figure of tensor parallelism: where more devices stop helping."""
    series = run["tensor_parallel_by_devices"]
    devices = series["devices"] if series is not None and "devices" in series else []
    parts = []
    for name in ("NVLink, 2 µs", "between machines, 10 µs"):
        ratios = [_number(series, row, name) for row in range(len(devices))]
        known = [(r, d) for r, d in zip(ratios, devices) if r]
        if known:
            best, at = max(known)
            where = "NVLink" if name.startswith("NVLink") else "a network between machines"
            count = f"{number(at)} device{'s' if at != 1 else ''}"
            parts.append(f"with {where} {times(best)} at {count}")
    if not parts:
        return {"amdahl_finding": missing("the gain of tensor parallelism").sentence}
    gains = ", and ".join(parts)
    return {"amdahl_finding": f"The largest speed-up in the figure is {gains}."}


def one_model(run: Any) -> dict[str, str]:
    """A step of one model in two processes, against its least time and against one process."""
    series = run["one_model_in_two"]
    names = ("step of two, predicted", "step of two", "step of one process")
    least, both, alone = (_number(series, name, "seconds") for name in names)
    said = missing("a step of one model in two processes").sentence
    if None not in (least, both, alone):
        faster = f"{times(alone / both)} as fast as the step of one process with one thread"
        said = (
            f"A step of one sequence should take {quantity(least, 's')} at least, and takes {quantity(both, 's')}: "
            f"{times(both / least)} the least time. It is {faster}."
        )
    params = (series.params or {}) if series is not None else {}
    same, of = params.get("same_tokens"), params.get("tokens")
    tokens = missing("whether the tokens are the same").sentence
    if same is not None and of:
        tokens = f"Of {number(of)} tokens, {number(same)} are those of one process."
    return {"one_model_finding": said, "one_model_tokens": tokens}


def _largest_error(series: Series | None, name: str) -> float | None:
    """Largest |simulated / closed form - 1| over the loads."""
    closed = f"{name}, closed form"
    rows = len(series[name]) if series is not None and name in series else 0
    ratios = [_over(_number(series, r, name), _number(series, r, closed)) for r in range(rows)]
    errors = [abs(ratio - 1) for ratio in ratios if ratio is not None]
    return max(errors, default=None)


def queues(run: Any) -> dict[str, str]:
    """The sentences on Erlang's formula: the simulator's error, and what the choice of the queue is worth."""
    series = run["one_queue_or_two"]
    errors = [_largest_error(series, name) for name in ("one queue", "two queues, at random")]
    known = [error for error in errors if error is not None]
    said = missing("the simulator's error").sentence
    if known:
        said = (
            f"The simulated waits differ from the closed forms by at most {percent(max(known))} "
            "at any load in the figure."
        )
    names = ("one queue", "two queues, the shorter", "two queues, at random")
    one, shorter, at_random = (_number(series, -1, name) for name in names)
    load = value(cell(series, "load", -1)).middle
    choice = missing("the wait by queue").sentence
    if None not in (one, shorter, at_random, load):
        choice = (
            f"At a load of {percent(load)}, requests wait {number(at_random)} service times with two queues "
            f"chosen at random, {number(shorter)} with the shorter of the two, and {number(one)} with one queue."
        )
        if one < shorter < at_random:
            gained = (at_random - shorter) / (at_random - one)
            choice += f" So the choice of the shorter queue makes up for {percent(gained)} of the difference."
    return {"erlang_finding": said, "queues_finding": choice}


def affinity(run: Any) -> float | None:
    """Hit rate of the longest prefix's policy over that of one replica with the whole trace."""
    series = run["policies"]
    alone = (series.params or {}).get("one_replica") if series is not None else None
    return _over(_number(series, "longest_prefix", "hit_rate"), alone)


def policies(run: Any) -> dict[str, str]:
    """The sentences under the table of the routers."""
    series = run["policies"]
    names = ("round_robin", "power_of_two", "longest_prefix")
    rates = {name: _number(series, name, "hit_rate") for name in names}
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
                f" The longest prefix {verb} {HIT_GOAL:g} times the rate of one replica, the goal "
                f"({times(reached)})."
            )
    found = compare(
        _cell(series, "longest_prefix", "ttft"), _cell(series, "round_robin", "ttft"),
        "the median first token with longest prefix", "that with round robin",
    )  # fmt: skip
    worst = simulator_error(run)
    if worst is None:
        simulated = missing("the simulator beside the replicas").sentence
    else:
        within = "within" if worst <= SIMULATOR_GOAL else "not within"
        simulated = (
            f"The simulator's median TTFT differs from the measured one by {percent(worst)} at most, "
            f"{within} the {percent(SIMULATOR_GOAL)} that was the goal."
        )
    return {
        "hits_finding": hits,
        "ttft_finding": found.sentence,
        "simulator_finding": simulated,
    }


def simulator_error(run: Any) -> float | None:
    """Largest |predicted / measured - 1| of the median TTFT over the policies."""
    series = run["policies"]
    rows = len(series["policy"]) if series is not None and "policy" in series else 0
    ratios = [
        _over(_number(series, r, "predicted_ttft"), _number(series, r, "ttft")) for r in range(rows)
    ]
    errors = [abs(ratio - 1) for ratio in ratios if ratio is not None]
    return max(errors, default=None)


def killed(run: Any) -> dict[str, str]:
    """What became of the requests when one of two replicas was killed."""
    series = run["killed"]
    names = (
        "completed at the first try",
        "completed at the other replica",
        "failed after the first token",
    )
    found = [value(_cell(series, name, "count")).middle for name in names]
    if None in found or min(found) < 0:
        return {"killed_finding": missing("what a killed replica costs").sentence}
    stayed, moved, failed = (f"{number(count)}" for count in found)
    return {
        "killed_finding": f"Of the requests, {stayed} complete where they were first sent, {moved} complete at the "
        f"other replica, and {failed} fail, because their first token had been sent."
    }


def thousand(run: Any) -> dict[str, str]:
    """The sentences under the table of the large fleet."""
    series = run["thousand_replicas"]
    rows = len(series["policy"]) if series is not None and "policy" in series else 0
    by = {}
    for row in range(rows):
        age = value(cell(series, "load_age", row)).middle
        by[series["policy"][row], bool(age)] = row
    get = lambda name, old, column: (  # noqa: E731
        _number(series, by[name, old], column) if (name, old) in by else None
    )
    rates = [get(name, False, "hit_rate") for name in ("power_of_two", "longest_prefix")]
    waits = [get(name, False, "ttft50") for name in ("power_of_two", "longest_prefix")]
    said = missing("the policies in a large fleet").sentence
    if None not in (*rates, *waits):
        said = (
            f"With longest prefix, {percent(rates[1])} of the prompt tokens are found in a cache and the median TTFT "
            f"is {quantity(waits[1], 's')}; with power of two, it is {percent(rates[0])} and {quantity(waits[0], 's')}."
        )
    least, two = (get(name, True, "ttft99") for name in ("least_loaded", "power_of_two"))
    stale = missing("the cost of old loads").sentence
    if None not in (least, two):
        stale = (
            "With loads that are up to half a second old, the 99th percentile of TTFT is "
            f"{quantity(least, 's')} with least loaded and {quantity(two, 's')} with power of two."
        )
    return {"thousand_finding": said, "stale_finding": stale}


def day(run: Any) -> dict[str, str]:
    """The cheapest plan of the day that serves 99 % of the requests within the limits."""
    series = run["day"]
    rows = range(len(series["plan"]) if series is not None and "plan" in series else 0)
    found = [
        (hours, good, series["plan"][row])
        for row in rows
        if (hours := _number(series, row, "replica_hours"))
        and (good := _number(series, row, "attained"))
    ]
    if not found:
        return {"day_finding": missing("the cost of a day").sentence}
    good = [entry for entry in found if entry[1] >= 0.99]
    if not good:
        hours, share, plan = max(found, key=lambda entry: entry[1])
        return {
            "day_finding": f"No plan serves 99 % of the requests within the limits. The best one, “{plan}”, serves "
            f"{100 * share:.1f} % for {number(hours)} replica-hours."
        }
    hours, share, plan = min(good)
    dearest = max(found)
    return {
        "day_finding": f"The cheapest plan that serves 99 % of the requests within the limits is “{plan}”: "
        f"{100 * share:.1f} % for {number(hours)} replica-hours, where the most expensive plan takes {number(dearest[0])}."
    }


def apart(run: Any) -> dict[str, str]:
    """Prompts and answers apart, against all together, for the division whose two latencies are best together."""
    series = run["prompts_apart"]
    column = "prefill_replicas"
    rows = range(len(series[column]) if series is not None and column in series else 0)
    split = {}
    for row in rows:
        replicas = value(cell(series, column, row)).middle
        both = _number(series, row, "ttft99"), _number(series, row, "tpot99")
        if replicas is not None and replicas >= 0 and None not in both:
            split[replicas] = both
    together = split.pop(0, None)
    if together is None or not split:
        return {"apart_finding": missing("prompts and answers apart").sentence}
    # The smallest value of the larger ratio, of TTFT or TPOT, to the fleet without a division.
    best = min(split, key=lambda n: max(split[n][0] / together[0], split[n][1] / together[1]))
    ttft, tpot = split[best]
    whole = f"{quantity(together[0], 's')} and {quantity(together[1], 's')}"
    if ttft < together[0] and tpot < together[1]:
        verdict = f"Both are smaller than without a division ({whole})."
    else:
        verdict = f"Without a division they are {whole}, so no division here improves both."
    return {
        "apart_finding": f"The best division for both latencies has {number(best)} replicas for prompts. Its 99th "
        f"percentiles are {quantity(ttft, 's')} of TTFT and {quantity(tpot, 's')} of TPOT. {verdict}"
    }


def rack(run: Any) -> dict[str, str]:
    """What a lost rack costs: failed requests, and waiting by how full the fleet was."""
    series = run["rack_lost"]
    rows = range(len(series["load"]) if series is not None and "load" in series else 0)
    names = ("failed", "moved", "requests")
    counted = [[value(cell(series, name, row)).middle for name in names] for row in rows]
    said = missing("what a lost rack costs").sentence
    if counted and all(None not in some and min(some) >= 0 for some in counted):
        failed, moved, total = counted[-1]
        said = (
            f"In the fuller fleet, {number(failed)} of {number(total)} requests fail: those that were running in the "
            f"rack. The others there were still waiting and are sent to another replica: {number(moved)}."
        )
    parts = []
    for row in rows:
        before, during = (_number(series, row, name) for name in ("before", "during"))
        if before and during:
            parts.append(
                f"in the {series['load'][row]} fleet from {quantity(before, 's')} to {quantity(during, 's')}"
            )
    load = missing("the waiting while a rack is away").sentence
    if parts:
        load = f"While the rack is away, the 99th percentile of TTFT changes {' and '.join(parts)}."
    return {"rack_finding": said, "rack_load_finding": load}


def predictions(run: Any) -> list[Prediction]:
    """The chapter's predictions, for the table at its end."""
    series = run["policies"]
    two = run["one_model_in_two"]
    found = [
        Prediction(
            "step of one sequence, one model in two processes",
            _number(two, "step of two, predicted", "seconds"), _cell(two, "step of two", "seconds"),
            sense="at least",
        )
    ]  # fmt: skip
    for name in ("round_robin", "longest_prefix"):
        words = name.replace("_", " ")
        found += [
            Prediction(
                f"hit rate, {words}, simulated",
                _number(series, name, "predicted_hit_rate"), _number(series, name, "hit_rate"), "", "",
            ),
            Prediction(
                f"median TTFT, {words}, simulated",
                _number(series, name, "predicted_ttft"), _cell(series, name, "ttft"),
            ),
        ]  # fmt: skip
    gain = [
        _over(_number(series, "round_robin", column), _number(series, "longest_prefix", column))
        for column in ("predicted_ttft", "ttft")
    ]
    found.append(
        Prediction("median TTFT, round robin over longest prefix, simulated", *gain, "", "×")
    )
    return found


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    measured = setups(run) | one_model(run) | policies(run) | killed(run)
    simulated = amdahl(run) | queues(run) | thousand(run) | day(run) | apart(run) | rack(run)
    return measured | simulated
