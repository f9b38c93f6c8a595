"""What the published claims of speed mean, as arithmetic on one hardware's records. Used by `book.scoreboard.claims`.

A rule compares at the size that the claim names where that was run, else at the nearest size that both have, else it
only says what was found and where. Each takes one hardware's records and the published figures, and returns None where
the records lack what it needs.

Introduced in chapter 6.
"""

import re

from book.scoreboard.outcomes import (
    DEPENDS,
    HARDWARE,
    REFUTED,
    REPRODUCED,
    TOLERANCE,
    Outcome,
    Records,
    decide,
    gains,
    get,
    nearest,
    ratio,
    times,
)
from lib.bench.paths import repository
from lib.bench.records.files import Reference

SEQUENTIAL, PAGED = "sequential", "continuous, paged"  # names of chapter 6's servers


def batching_gains(records: Records) -> dict[float, float]:
    """{batch: throughput over that of batch 1}; chapter 3."""
    series = get(records, "03", "batch_sweep_float32")
    rows = [] if series is None else series.rows()
    alone = next((row["tok_s"] for row in rows if row["batch"] == 1), None)
    pairs = {row["batch"]: ratio(row["tok_s"], alone) for row in rows if row["batch"] > 1}
    return {size: value for size, value in pairs.items() if value}


def cache_gains(records: Records) -> dict[float, float]:
    """{generated tokens: throughput with a cache over without}; chapter 2."""
    return gains(get(records, "02", "throughput_by_generated"), "generated", "kv_cache", "no_cache")


def published_batching(published: Reference) -> dict[float, float]:
    """As `batching_gains`."""
    sweep = published["batch_sweep"]
    return {b: rate / sweep["tok_s"][0] for b, rate in zip(sweep["batch"], sweep["tok_s"]) if b > 1}


def published_cache(published: Reference) -> dict[float, float]:
    """As `cache_gains`."""
    sweep = published["throughput_by_generated_tokens"]
    return {
        n: b / a
        for n, a, b in zip(sweep["tokens"], sweep["no_cache_tok_s"], sweep["kv_cache_tok_s"])
    }


def curve(
    ours: dict[float, float], theirs: dict[float, float], where: str, axis: str
) -> Outcome | None:
    """A gain at the size where the published curve ends, or as near as may be. `where`: "batch {}", axis: its name."""
    if not ours:
        return None
    last = max(theirs)
    candidates = [size for size in ours if size in theirs] or list(ours)
    size = candidates[nearest(candidates, last)]
    here, there = ours[size], theirs.get(size)
    text = f"{times(here)} at {where.format(f'{size:,}')}"
    if there is None:
        near = list(theirs)[nearest(list(theirs), size)]
        text += f" (published nearest: {times(theirs[near])} at {where.format(f'{near:,}')})"
    elif size != last:
        text += f" (published there: {times(there)})"
    return Outcome(text, decide(here > 1, here, there, full=size == last, size=axis))


def batch_gain(records: Records, published: Reference) -> Outcome | None:
    """Headline: throughput at the largest batch over batch 1."""
    return curve(batching_gains(records), published_batching(published), "batch {}", "the batch")


def cache_gain(records: Records, published: Reference) -> Outcome | None:
    """Headline: throughput with a cache over without, for the longest answer."""
    axis = f"the length of the answer and {HARDWARE}"
    return curve(cache_gains(records), published_cache(published), "{} tokens", axis)


def load_gain(records: Records, published: Reference) -> Outcome | None:
    """Headline: the paged server over the sequential one, short prompts; chapter 6."""
    series = get(records, "06", "gain_by_length")
    if series is None or not series["gain"][0]:
        return None
    gain, users, answer = series["gain"][0], series.params["users"], series.params["answer"]
    full = (users, answer) == (64, published["load_setup"]["max_tokens"])
    size = f"the number of users, the length of the answer and {HARDWARE}"
    verdict = decide(gain > 1, gain if full else None, published["load_c64"]["gain"][0], size=size)
    parts = f"batching {times(series['batching'][0])}, paging {times(series['paging'][0])}"
    return Outcome(f"{times(gain)} at {users} users, {answer} tokens each: {parts}", verdict)


def computing_time_saved(records: Records) -> float | None:
    """Percent of a step's computing time that the cache saves; chapter 2's profile."""
    spent = get(records, "02", "profile_time")
    left = None if spent is None else ratio(spent["kv_cache"][0], spent["no_cache"][0])
    return None if left is None else 100 * (1 - left)


def time_saved(records: Records, published: Reference) -> Outcome | None:
    """Headline: less CUDA time with a cache."""
    percent = computing_time_saved(records)
    if percent is None:
        return None
    verdict = decide(percent > 0, percent, published["headline"]["cuda_time_reduction_pct"])
    return Outcome(
        f"{percent:.0f} %, a step at {get(records, '02', 'profile_time').params['length']} tokens",
        verdict,
    )


def tests(records: Records, published: Reference) -> Outcome | None:
    """Headline: the number of tests. Counted in this repository, whatever the hardware."""
    files = (repository() / "tests").rglob("test_*.py")
    found = sum(
        len(re.findall(r"^\s*(?:async )?def test_", path.read_text(), re.M)) for path in files
    )
    return Outcome(f"{found} test functions", f"{DEPENDS} what counts as one") if found else None


def largest_win(records: Records, published: Reference) -> Outcome | None:
    """Finding: batching gains more than anything else. It is compared with the KV cache."""
    batching, cache, theirs = (
        batching_gains(records),
        cache_gains(records),
        published_batching(published),
    )
    if not batching or not cache:
        return None
    size, tokens, last = max(batching), max(cache), max(theirs)
    at = last if last in batching else size
    verdict = decide(
        batching[at] > cache[tokens],
        batching[at],
        theirs.get(at),
        full=at == last,
        size="the batch",
    )
    text = f"batching {times(batching[at])} at batch {at:,}, KV cache {times(cache[tokens])} at {tokens:,} tokens"
    return Outcome(text, verdict)


def grows_with_length(records: Records, published: Reference) -> Outcome | None:
    """Finding: what the cache gains depends on the length."""
    ours, theirs = cache_gains(records), published_cache(published)
    ends = [min(theirs), max(theirs)]
    full = all(n in ours for n in ends)
    low, high = ends if full else (min(ours, default=0), max(ours, default=0))
    if low == high:
        return None
    verdict = decide(ours[high] > ours[low], ours[high] if full else None, theirs[ends[1]])
    return Outcome(
        f"{times(ours[low])} at {low:,} tokens, {times(ours[high])} at {high:,}", verdict
    )


def dispatch(records: Records, published: Reference) -> Outcome | None:
    """Finding: with a cache the dominant kernel is gemv instead of gemm, and computing time falls."""
    series, percent = get(records, "02", "profile"), computing_time_saved(records)
    if series is None or percent is None:
        return None
    before, after = (
        max(series.rows(), key=lambda row: row[stage])["family"]
        for stage in ("no_cache", "kv_cache")
    )
    changed = before == "gemm" and after == "gemv"
    theirs = published["headline"]["cuda_time_reduction_pct"]
    verdict = decide(
        percent > 0, percent if changed else None, theirs, size="the library's choice of kernels"
    )
    return Outcome(f"{before} to {after}, {percent:.0f} % less computing time", verdict)


def long_prompts(records: Records, published: Reference) -> Outcome | None:
    """Finding: the paged server's gain is hardly less with long prompts."""
    series = get(records, "06", "gain_by_length")
    kept = None if series is None else ratio(series["gain"][-1], series["gain"][0])
    if kept is None:
        return None
    short, long = series["gain"][0], series["gain"][-1]
    text = f"{times(long)} at long, {times(short)} at short, {series.params['users']} users"
    theirs = published["load_c64"]["gain"]
    same = kept >= (1 - TOLERANCE) * theirs[-1] / theirs[0]
    return Outcome(text, REFUTED if long <= 1 else REPRODUCED if same else f"{DEPENDS} {HARDWARE}")


def flat_throughput(records: Records, published: Reference) -> Outcome | None:
    """Failure: a server that takes one request at a time gives the same throughput for any number of users."""
    series = get(records, "06", "throughput_by_users")
    if series is None or len(series["users"]) < 2 or not all(series[SEQUENTIAL]):
        return None
    rates, paged, users = series[SEQUENTIAL], series[PAGED], series["users"]
    text = f"{times(rates[-1] / rates[0])} from {users[0]} to {users[-1]} users"
    if grown := ratio(paged[-1], paged[0]):
        text += f"; with batching and paging {times(grown)}"
    return Outcome(text, REPRODUCED if max(rates) / min(rates) <= 1 + TOLERANCE else REFUTED)
