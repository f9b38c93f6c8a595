"""The sentences of chapter 6 about users who wait for their answers: throughput, latency, prompts, HTTP.

Introduced in chapter 6.
"""

from typing import Any

from lib.bench.findings.curves import trend
from lib.bench.findings.load_rows import (
    COMPARED,
    CONTIGUOUS,
    NAMES,
    PAGED,
    SEQUENTIAL,
    by_users,
    counted,
    labels,
    latency,
    middle,
    peak_waiting,
    rate,
    users,
)
from lib.bench.findings.values import (
    Measured,
    cell,
    column,
    number,
    percent,
    quantity,
    times,
)
from lib.bench.findings.vocabulary import Finding, compare, missing, share, versus_bound

FLAT = "the throughput of the sequential server"


def line(run: Any, server: str) -> tuple[float, float] | None:
    """a and b of a server's steps (s), from the predicted throughput at the fewest and the most users; None without."""
    levels, predicted = users(run), by_users(run, f"{server}, predicted")
    if len(levels) < 2 or len(predicted) != len(levels) or levels[-1] <= levels[0]:
        return None
    slow, fast = middle(predicted[0]), middle(predicted[-1])
    if slow is None or fast is None:
        return None
    one, many = levels[0] / slow, levels[-1] / fast
    each = (many - one) / (levels[-1] - levels[0])
    shared = one - each * levels[0]
    return (shared, each) if shared > 0 and each > 0 else None


def gain_at(run: Any) -> int:
    """Index of the number of users at which the gain is taken apart; the last where it is not noted."""
    series, levels = run["gain_by_length"], users(run)
    at = None if series is None else series.params.get("users")
    return levels.index(at) if at in levels else -1


def predicted_at(run: Any, server: str, row: int) -> Measured:
    """Predicted tokens/s of a server in one row; None where there is none."""
    return cell(run["throughput_by_users"], f"{server}, predicted", row)


def ratio(a: Measured, b: Measured) -> float | None:
    """a over b by their middles; None where one is missing or not above zero."""
    x, y = middle(a), middle(b)
    return x / y if x and y else None


def foretold(run: Any) -> dict[str, str]:
    """What the model says before the sweep, from two points for each server."""
    found, levels = line(run, PAGED), users(run)
    if found is None:
        return {"model_finding": missing("the model's line").sentence}
    shared, each = found
    row = gain_at(run)
    predicted = {name: predicted_at(run, name, row) for name in COMPARED}
    batching = ratio(predicted[CONTIGUOUS], predicted[SEQUENTIAL])
    paging = ratio(predicted[PAGED], predicted[CONTIGUOUS])
    said = (
        f"By these points, a step of {NAMES[PAGED]} takes {quantity(shared, 's')}, and {quantity(each, 's')} more for each "
        f"sequence in it, so that from {counted(max(1, round(shared / each)), 'user')} on the sequences add more than they share."
    )
    if batching is None or paging is None:
        return {"model_finding": f"{said} {missing('the predicted gain').sentence}"}
    return {
        "model_finding": f"{said} For {number(levels[row])} users the model says: batching gives "
        f"{times(batching)}, and paging {times(paging)}."
    }


def line_bound(run: Any) -> dict[str, str]:
    """A step of one sequence, and a full one, against the least that this machine's ceilings allow.

    The arithmetic of the sequences may hide behind the reading of the weights, so the least time of n sequences is the
    larger of the two. The parts a and b have no bound of their own.
    """
    series = run["step_line"]
    row = labels(series, "server").index(PAGED) if PAGED in labels(series, "server") else 0
    shared, each, reading, work = (
        middle(cell(series, name, row)) for name in ("shared", "each", "shared_bound", "each_bound")
    )
    if None in (shared, each, reading, work):
        return {"bound_finding": missing("a step over its bound").sentence}
    seats = series.params.get("max_num_seqs") or (users(run) or [1])[-1]
    one, full = (versus_bound(max(reading, n * work), shared + n * each) for n in (1, seats))
    if "missing" in (one.kind, full.kind):
        return {"bound_finding": missing("a step over its bound").sentence}
    return {
        "bound_finding": f"At {NAMES[PAGED]}, a step of one sequence is {one}, and one of {number(seats)} is {full}."
    }


def fit(run: Any) -> list[tuple[float, str, float]]:
    """(measured over predicted, server, users) of every point that has both."""
    return [
        (got / want, name, level)
        for name in COMPARED
        for level, measured, predicted in zip(
            users(run), by_users(run, name), by_users(run, f"{name}, predicted")
        )
        if (got := middle(measured)) and (want := middle(predicted))
    ]


def throughput(run: Any) -> dict[str, str]:
    """The sentences under the figure of throughput by users."""
    points = fit(run)
    if points:
        low, high = min(points)[0], max(points)[0]
        worst = max(points, key=lambda p: max(p[0], 1 / p[0]))
        near = sum(abs(p[0] - 1) <= 0.1 for p in points)
        first = f"Measured over predicted lies between {low:.2f} and {high:.2f} over {len(points)} points"
        if near == len(points):
            first += ": as predicted, everywhere within 10 %."
        else:
            first += (
                f": {near} of them within 10 % of the prediction. The furthest is {NAMES[worst[1]]} with "
                f"{counted(worst[2], 'user')}, at {times(worst[0])} the prediction."
            )
    else:
        first = missing("throughput over its prediction").sentence
    flat = flat_trend(run)
    verdict = {"flat": "as predicted", "cannot tell": "so the prediction is not judged"}
    said = f"With more users {FLAT} {flat}, {verdict.get(flat.kind, 'so the prediction failed')}."
    if flat.kind == "missing":
        said = missing(FLAT).sentence
    return {"fit_finding": first, "flat_finding": said, "gain_finding": _gain(run)}


def flat_trend(run: Any) -> Finding:
    return trend(users(run), by_users(run, SEQUENTIAL), "tokens/s")


def factors(run: Any) -> tuple[float | None, float | None]:
    """(batching, paging): contiguous over sequential, and paged over contiguous."""
    row = gain_at(run)
    return (
        ratio(rate(run, CONTIGUOUS, row), rate(run, SEQUENTIAL, row)),
        ratio(rate(run, PAGED, row), rate(run, CONTIGUOUS, row)),
    )


def gain_cause(run: Any) -> Finding:
    """Which of the two changes the gain is due to. kind: "batching", "both", "paging", "none" or "missing"."""
    batching, paging = factors(run)
    if batching is None or paging is None:
        return missing("the gain by batching", "the gain by paging")
    more, faster = batching > 1.25, paging > 1.1
    if more and not faster:
        kept = "costs some of it" if paging < 1 / 1.1 else "changes little"
        return Finding(f"the gain comes from the scheduler, and paging {kept}", "batching")
    if more:
        text = (
            "both changes add to the gain, and the gain of paging is not one that the model knows"
        )
        return Finding(text, "both")
    if faster:
        return Finding("the gain comes from paging, and not from the scheduler", "paging")
    return Finding("neither change makes the server faster here", "none")


def _gain(run: Any) -> str:
    batching, paging = factors(run)
    row, levels = gain_at(run), users(run)
    if batching is None or paging is None:
        return missing("the gain over the sequential server").sentence
    whole = compare(rate(run, PAGED, row), rate(run, SEQUENTIAL, row), NAMES[PAGED], NAMES[SEQUENTIAL],
                    what="throughput", unit="tokens/s")  # fmt: skip
    return (
        f"With {number(levels[row])} users, {whole}. Batching alone gives {times(batching)} and paging "
        f"{times(paging)}: {gain_cause(run)}."
    )


def waiting_share(run: Any, server: str) -> Finding:
    """Part of the median answer, with the most users, that passes before its first token."""
    return share(latency(run, server, "ttft_p50", -1), latency(run, server, "p50", -1))


def latencies(run: Any) -> dict[str, str]:
    """The sentences under the figures of latency by users."""
    slow, fast = (latency(run, name, "p50", -1) for name in (SEQUENTIAL, PAGED))
    levels = labels(run["latency_by_users"], "users")
    if not levels:
        first = missing("the time of an answer").sentence
    else:
        found = compare(fast, slow, NAMES[PAGED], NAMES[SEQUENTIAL])
        first = f"With {number(levels[-1])} users, and by the time of the median answer, {found}."
    parts = [waiting_share(run, name) for name in (SEQUENTIAL, PAGED)]
    second = missing("the wait for the first token").sentence
    if "failed" in (parts[0].kind, parts[1].kind):
        second = "This run cannot tell how much of that time passes before the first token."
    elif all(p.ratio is not None for p in parts):
        second = (
            f"Of that time, {parts[0]} passes before the first token at the sequential server, and {parts[1]} at the "
            "paged one."
        )
    return {
        "answer_finding": first,
        "first_token_finding": second,
        "pace_finding": _pace(run, levels),
        "generator_finding": _generator(run),
    }


def pace(run: Any) -> Finding:
    """A token's time of the paged server with the most users, against one user."""
    alone, many = (latency(run, PAGED, "tpot_p50", row) for row in (0, -1))
    return compare(many, alone, "a token among others", "a token alone")


def _pace(run: Any, levels: list[float]) -> str:
    found = pace(run)
    alone, many = (middle(latency(run, PAGED, "tpot_p50", row)) for row in (0, -1))
    if alone is None or many is None or not levels:
        return missing("the pace of the paged server").sentence
    said = (
        f"A user of the paged server gets a token every {quantity(alone, 's')} alone, and every {quantity(many, 's')} "
        f"among {number(levels[-1])}"
    )
    if found.direction > 0:
        return f"{said}, {times(many / alone)} as long: a batch slows down each of its sequences."
    return f"{said}: this run does not show that a batch slows down its sequences."


def _generator(run: Any) -> str:
    series = run["closed_loop"]
    worst = [x for x in labels(series, "lag_p99") if x is not None]
    marked = [x for x in labels(series, "lagged") if x is not None]
    if not worst or not marked:
        return missing("the lag of the generator").sentence
    late = sum(bool(x) for x in marked)
    return (
        f"The generator sent its requests at most {quantity(max(worst), 's')} late (99th percentile of the worst run), "
        f"and it is marked as lagging in {number(late)} of {len(marked)} runs."
    )


def queue(run: Any) -> dict[str, str]:
    """How long the queue of the sequential server was, for the sentence on the gate."""
    most, levels = peak_waiting(run), users(run)
    if most is None or not levels:
        return {"waited_finding": missing("the queue of the sequential server").sentence}
    return {
        "waited_finding": f"With {number(levels[-1])} users, up to {number(most)} requests waited in the sequential "
        "server at once."
    }


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
    got = middle(cell(series, server, row))
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
    measured = middle(cell(series, "batching", -1))
    long, short = request_time(run, SEQUENTIAL, -1), request_time(run, CONTIGUOUS, 0)
    if extra is None or long is None or short is None:
        return None, measured
    return long / (short + extra[0]), measured


def http(run: Any) -> dict[str, str]:
    """What HTTP costs."""
    series = run["http_over_offline"]
    offline, online = cell(series, "offline_s", 0), cell(series, "http_s", 0)
    found = compare(online, offline, "the batch over HTTP", "the same batch without a server")
    kept = ratio(offline, online)
    if kept is None:
        return {"http_finding": missing("the throughput over HTTP").sentence}
    said = f"Over HTTP the engine reaches {percent(kept)} of its throughput without a server"
    if found.kind == "cannot tell":
        return {"http_finding": f"{said}, but {found}."}
    if found.direction < 0:
        return {
            "http_finding": f"{said}: {found}. A server cannot make the engine faster, so "
            "something else differs between the two."
        }
    return {"http_finding": f"{said}: {found}."}
