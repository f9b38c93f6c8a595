"""What the published claims of speed mean, as arithmetic on one hardware's records. Used by `book.scoreboard.claims`.

A rule compares at the size that the claim names where that was run, else at the nearest size that both have, else it
only says what was found and where. Each takes one hardware's records and the published figures, and returns None where
the records lack what it needs.

Introduced in chapter 6.
"""

from book.scoreboard.outcomes import (
    INCONCLUSIVE,
    NOISE,
    NOT_COMPARABLE,
    REFUTED,
    REPRODUCED,
    TOLERANCE,
    Outcome,
    Records,
    card_name,
    direction,
    figure,
    gains,
    get,
    middle,
    nearest,
    on_card,
    quotient,
    times,
)
from lib.bench.findings.values import cell, column, percent, value
from lib.bench.records.files import Reference
from lib.bench.records.series import Series

SEQUENTIAL, PAGED = "sequential", "continuous, paged"  # names of chapter 6's servers
Gains = dict[float, list[float]]  # by size: see `outcomes.gains`


def batching_gains(records: Records) -> Gains:
    """{batch: throughput over that of batch 1}; chapter 3."""
    series = get(records, "03", "batch_sweep_float32")
    if series is None or 1 not in series["batch"]:
        return {}
    rates = dict(zip(series["batch"], column(series, "tok_s")))
    found = {batch: quotient((rate, rates[1])) for batch, rate in rates.items() if batch > 1}
    return {batch: gain for batch, gain in found.items() if gain is not None}


def cache_gains(records: Records) -> Gains:
    """{generated tokens: throughput with a cache over without}; chapter 2."""
    return gains(get(records, "02", "throughput_by_generated"), "generated", "kv_cache", "no_cache")


def published_batching(published: Reference) -> dict[float, float]:
    """{batch: throughput over that of batch 1}."""
    sweep = published["batch_sweep"]
    return {b: rate / sweep["tok_s"][0] for b, rate in zip(sweep["batch"], sweep["tok_s"]) if b > 1}


def published_cache(published: Reference) -> dict[float, float]:
    """{generated tokens: throughput with a cache over without}."""
    sweep = published["throughput_by_generated_tokens"]
    return {
        n: b / a
        for n, a, b in zip(sweep["tokens"], sweep["no_cache_tok_s"], sweep["kv_cache_tok_s"])
    }


def curve(
    ours: Gains, theirs: dict[float, float], where: str, card: bool, needs: str
) -> Outcome | None:
    """A gain at the size where the published curve ends, or as near as may be. `where`: "batch {}"."""
    if not ours:
        return None
    last = max(theirs)
    candidates = [size for size in ours if size in theirs] or list(ours)
    size = candidates[nearest(candidates, last)]
    here, there = ours[size], theirs.get(size)
    text = f"{times(middle(here))} at {where.format(f'{size:,}')}"
    if there is None:
        near = list(theirs)[nearest(list(theirs), size)]
        text += f" (published nearest: {times(theirs[near])} at {where.format(f'{near:,}')})"
    elif size != last:
        text += f" (published there: {times(there)})"
    reached = middle(here) if size == last else None
    return Outcome(text, *figure(direction(here, 1), reached, theirs[last], card=card, needs=needs))


def batch_gain(records: Records, published: Reference) -> Outcome | None:
    """Headline: throughput at the largest batch over batch 1."""
    theirs = published_batching(published)
    needs = f"chapter 3 on an {card_name(published)}, up to batch {max(theirs):,}"
    return curve(batching_gains(records), theirs, "batch {}", on_card(records, published), needs)


def cache_gain(records: Records, published: Reference) -> Outcome | None:
    """Headline: throughput with a cache over without, for the longest answer."""
    theirs = published_cache(published)
    needs = f"chapter 2 on an {card_name(published)}, up to {max(theirs):,} tokens"
    return curve(cache_gains(records), theirs, "{} tokens", on_card(records, published), needs)


def length_gains(records: Records) -> tuple[Series | None, list[list[float] | None]]:
    """Chapter 6's series of prompt lengths, and the paged server's gain over the sequential one at each."""
    series = get(records, "06", "gain_by_length")
    rows = range(len(series["workload"])) if series is not None else ()
    return series, [quotient((cell(series, PAGED, i), cell(series, SEQUENTIAL, i))) for i in rows]


def _load_needs(published: Reference) -> tuple[tuple[int, int], str]:
    """((users, tokens per answer) of the published load test, what would make a run comparable to it)."""
    users, answer = published["load_c64"]["users"], published["load_setup"]["max_tokens"]
    said = f"{users} users and answers of {answer} tokens"
    return (users, answer), f"chapter 6 on an {card_name(published)} with {said}"


def load_gain(records: Records, published: Reference) -> Outcome | None:
    """Headline: the paged server over the sequential one, short prompts; chapter 6."""
    series, found = length_gains(records)
    if series is None or found[0] is None:
        return None
    users, answer = series.params["users"], series.params["answer"]
    size, needs = _load_needs(published)
    gain = middle(found[0])
    judged = figure(
        direction(found[0], 1),
        gain if (users, answer) == size else None,
        published["load_c64"]["gain"][0],
        card=on_card(records, published),
        needs=needs,
    )
    parts = f"batching {times(series['batching'][0])}, paging {times(series['paging'][0])}"
    return Outcome(f"{times(gain)} at {users} users, {answer} tokens each: {parts}", *judged)


def time_saved(records: Records, published: Reference) -> Outcome | None:
    """Headline: less CUDA time with a cache."""
    found = _profile(records, published)
    return None if found is None else Outcome(*found)


def _profile(records: Records, published: Reference) -> tuple[str, str, str] | None:
    """(text, verdict, note) of the computing time that the cache saves; chapter 2's profile."""
    spent = get(records, "02", "profile_time")
    pair = (cell(spent, "no_cache", 0), cell(spent, "kv_cache", 0))
    if quotient(pair) is None:
        return None
    saved = 1 - value(pair[1]).middle / value(pair[0]).middle
    theirs, size = published["headline"]["cuda_time_reduction_pct"], published["profiler"]
    same = all(spent.params.get(name) == size[name] for name in ("prompt", "new_tokens"))
    needs = (
        f"a profile on an {card_name(published)} of the published work: {size['new_tokens']} tokens after a prompt of "
        f"{size['prompt']}"
    )
    judged = figure(
        direction(*pair),
        100 * saved if same else None,
        theirs,
        card=on_card(records, published),
        needs=needs,
    )
    said = "of the published work" if same else f"of a step at {spent.params['length']} tokens"
    return f"{percent(saved)} less computing time {said}", *judged


def largest_win(records: Records, published: Reference) -> Outcome | None:
    """Finding: batching gains more than anything else. It is compared with the KV cache, at the published sizes only."""
    batching, cache = batching_gains(records), cache_gains(records)
    if not batching or not cache:
        return None
    sizes = max(published_batching(published)), max(published_cache(published))
    full = sizes[0] in batching and sizes[1] in cache
    batch, tokens = sizes if full else (max(batching), max(cache))
    a, b = batching[batch], cache[tokens]
    text = f"batching {times(middle(a))} at batch {batch:,}; KV cache {times(middle(b))} at {tokens:,} tokens, batch 1"
    card, theirs = on_card(records, published), published_batching(published)[sizes[0]]
    needs = f"batch {sizes[0]:,} and {sizes[1]:,} tokens on an {card_name(published)}"
    if not (full and card):
        note = f"one gain grows with the batch, the other with the length, so they can be ranked at stated sizes only; needs {needs}"
        return Outcome(text, NOT_COMPARABLE, note)
    return Outcome(text, *figure(direction(a, b), middle(a), theirs, card=card, needs=needs))


def grows_with_length(records: Records, published: Reference) -> Outcome | None:
    """Finding: what the cache gains depends on the length."""
    ours, theirs = cache_gains(records), published_cache(published)
    ends = [min(theirs), max(theirs)]
    full = all(n in ours for n in ends)
    low, high = ends if full else (min(ours, default=0), max(ours, default=0))
    if low == high:
        return None
    verdict, note = figure(
        direction(ours[high], ours[low]),
        middle(ours[high]) if full else None,
        theirs[ends[1]],
        card=on_card(records, published),
        needs=f"chapter 2 on an {card_name(published)} with {ends[0]} and {ends[1]:,} tokens",
    )
    if verdict == NOT_COMPARABLE:
        note = f"the gain does grow with the length here; for the two figures it {note}"
    said = f"{times(middle(ours[low]))} at {low:,} tokens, {times(middle(ours[high]))} at {high:,}"
    return Outcome(said, verdict, note)


def dispatch(records: Records, published: Reference) -> Outcome | None:
    """Finding: with a cache the dominant kernel is gemv instead of gemm, and computing time falls."""
    series, spent = get(records, "02", "profile"), _profile(records, published)
    if series is None or spent is None:
        return None
    before, after = (
        max(series.rows(), key=lambda row: row[stage] or 0)["family"]
        for stage in ("no_cache", "kv_cache")
    )
    text, verdict, note = spent
    text = f"{before} to {after}, {text}"
    if (before, after) != ("gemm", "gemv"):
        return Outcome(text, REFUTED, "the library chooses its kernels separately on each machine")
    if verdict == NOT_COMPARABLE:
        note = f"the kernel does change here; for the time it {note}"
    return Outcome(text, verdict, note)


def long_prompts(records: Records, published: Reference) -> Outcome | None:
    """Finding: the paged server's gain is hardly less with long prompts: it keeps three quarters of it or more."""
    series, found = length_gains(records)
    if series is None or found[0] is None or found[-1] is None:
        return None
    kept = quotient((found[-1], found[0]))
    theirs = published["load_c64"]["gain"]
    users, answer = series.params["users"], series.params["answer"]
    text = (
        f"{times(middle(found[-1]))} at long, {times(middle(found[0]))} at short, {users} users: keeps "
        f"{percent(middle(kept))} (published: {percent(theirs[-1] / theirs[0])})"
    )
    size, needs = _load_needs(published)
    least = 1 - TOLERANCE
    if middle(kept) < least:
        if max(kept) >= least:
            return Outcome(text, INCONCLUSIVE, "the rounds differ by more than what is to be shown")
        note = ""
        if (users, answer) != size:
            note = (
                f"on this record, whose answers have {answer} tokens where the published have {size[1]}: the shorter the "
                f"answer, the more a prompt weighs; {needs} would decide"
            )
        return Outcome(text, REFUTED, note)
    judged = figure(
        direction(found[-1], 1),
        middle(kept) if (users, answer) == size else None,
        theirs[-1] / theirs[0],
        card=on_card(records, published),
        needs=needs,
    )
    return Outcome(text, *judged)


def flat_throughput(records: Records, published: Reference) -> Outcome | None:
    """Failure: a server that takes one request at a time gives the same throughput for any number of users."""
    series = get(records, "06", "throughput_by_users")
    rates = column(series, SEQUENTIAL)
    if len(rates) < 2 or any(quotient((rate, rate)) is None for rate in rates):
        return None
    users = series["users"]
    low, high = min(rates, key=middle), max(rates, key=middle)
    spread = quotient((high, low))
    text = f"varies by {percent(middle(spread) - 1)} from {users[0]} to {users[-1]} users"
    if grown := quotient((cell(series, PAGED, -1), cell(series, PAGED, 0))):
        text += f"; with batching and paging it grows {times(middle(grown))}"
    if middle(spread) <= 1 + NOISE:
        return Outcome(text, REPRODUCED)
    if min(spread) <= 1 + NOISE:
        return Outcome(text, INCONCLUSIVE, "the rounds differ by more than what is to be shown")
    return Outcome(text, REFUTED)
