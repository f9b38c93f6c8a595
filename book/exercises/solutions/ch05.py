"""Chapter 5: the limit that keeps the slowest answer of a burst below a time. A solution, and answers that are wrong, by what is wrong with them."""


def largest_limit(seconds, tokens, shared, each, slots):
    full = tokens * (shared + each * slots)  # a batch that fills all slots
    batches = int(seconds // full)
    left = seconds - batches * full
    more = max(
        (n for n in range(slots) if tokens * (shared + each * n) <= left),
        default=0,
    )
    return batches * slots + more


def by_little(seconds, tokens, shared, each, slots):
    return int(seconds * slots / (tokens * (shared + each * slots)))


def full_batches_only(seconds, tokens, shared, each, slots):
    return int(seconds // (tokens * (shared + each * slots))) * slots


WRONG = {
    "Little's law, which speaks of the mean": by_little,
    "full batches only": full_batches_only,
}
