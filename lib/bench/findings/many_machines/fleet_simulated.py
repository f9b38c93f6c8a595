"""The sentences of chapter 13 on simulated fleets: a thousand replicas, a day, prompts apart, a lost rack.

Introduced in chapter 13.
"""

from typing import Any

from lib.bench.findings.many_machines.fleet_rows import number_of
from lib.bench.findings.many_machines.fleet_times import rack_over_time
from lib.bench.findings.values import cell, number, percent, quantity, value
from lib.bench.findings.vocabulary import missing


def thousand(run: Any) -> dict[str, str]:
    """The sentences under the table of the large fleet."""
    series = run["thousand_replicas"]
    rows = len(series["policy"]) if series is not None and "policy" in series else 0
    by = {}
    for row in range(rows):
        age = value(cell(series, "load_age", row)).middle
        by[series["policy"][row], bool(age)] = row
    get = lambda name, old, column: (  # noqa: E731
        number_of(series, by[name, old], column) if (name, old) in by else None
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
        if (hours := number_of(series, row, "replica_hours"))
        and (good := number_of(series, row, "attained"))
    ]
    if not found:
        return {"day_finding": missing("the cost of a day").sentence}
    good = [entry for entry in found if entry[1] >= 0.99]
    if not good:
        hours, share, plan = max(found, key=lambda entry: entry[1])
        return {
            "day_finding": f"No plan serves 99 % of the requests within the limits. The best one, “{plan}”, serves "
            f"{share_served(share)} for {number(hours)} replica-hours."
        }
    hours, share, plan = min(good)
    dearest = max(found)
    most = (
        f", where the most expensive plan takes {number(dearest[0])}" if dearest[2] != plan else ""
    )
    return {
        "day_finding": f"The cheapest plan that serves 99 % of the requests within the limits is “{plan}”: "
        f"{share_served(share)} for {number(hours)} replica-hours{most}."
    }


def share_served(served: float) -> str:
    """A share in percent with two decimals; with three where two would read as the 99 % that are not reached."""
    text = f"{100 * served:.2f} %"
    return f"{100 * served:.3f} %" if served < 0.99 and text == "99.00 %" else text


def apart(run: Any) -> dict[str, str]:
    """Prompts and answers apart, against all together, for the division whose two latencies are best together."""
    series = run["prompts_apart"]
    column = "prefill_replicas"
    rows = range(len(series[column]) if series is not None and column in series else 0)
    split = {}
    for row in rows:
        replicas = value(cell(series, column, row)).middle
        both = number_of(series, row, "ttft99"), number_of(series, row, "tpot99")
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
        "apart_finding": "Each division is judged by the worse of its two ratios to the fleet without one, of TTFT and "
        f"of TPOT. The best one has {number(best)} replica{'s' * (best != 1)} for prompts. Its 99th percentiles are "
        f"{quantity(ttft, 's')} of TTFT and {quantity(tpot, 's')} of TPOT. {verdict}"
    }


def rack(run: Any) -> dict[str, str]:
    """What a lost rack costs: failed requests, and waiting by how full the fleet was and by the time of arrival."""
    series = run["rack_lost"]
    rows = range(len(series["load"]) if series is not None and "load" in series else 0)
    names = ("failed", "moved", "requests")
    counted = [[value(cell(series, name, row)).middle for name in names] for row in rows]
    said = missing("what a lost rack costs").sentence
    if counted and all(None not in some and min(some) >= 0 for some in counted):
        failed, moved, total = counted[-1]
        fail = f"none of {number(total)} requests failed"
        if failed:
            fail = f"{number(failed)} of {number(total)} requests failed: those that were running in the rack"
        waited = "No request was still waiting there."
        if moved:
            was = "request was" if moved == 1 else "requests were"
            waited = f"{number(moved)} {was} still waiting there and went to another replica."
        said = f"In the more loaded fleet, {fail}. {waited}"
    parts = []
    for row in rows:
        before, during = (number_of(series, row, name) for name in ("before", "during"))
        if before and during:
            parts.append(
                f"{quantity(during, 's')} in the {series['load'][row]} fleet ({quantity(before, 's')} before)"
            )
    load = missing("the waiting while a rack is away").sentence
    params = (series.params or {}) if series is not None else {}
    if parts:
        at, back = (value(params.get(name)).middle for name in ("at", "back"))
        span = f", from {number(at)} s to {number(back)} s" if at and back else ""
        load = (
            f"Over all requests that arrived while the rack was away{span}, the 99th percentile of TTFT is "
            f"{' and '.join(parts)}. “Before” is the second half of the time before the loss."
        )
    return {
        "rack_finding": said,
        "rack_load_finding": load,
        **rack_over_time(run["rack_over_time"]),
    }
