"""Chapter 10: prompt lookup with suffixes of 1 to 3 tokens. A solution, and answers that are wrong, by what is wrong with them."""


def draft(token_ids, k):
    for n in (3, 2, 1):
        suffix = token_ids[-n:]
        for start in range(len(token_ids) - n - 1, -1, -1):
            if token_ids[start : start + n] == suffix:
                return token_ids[start + n : start + n + k]
    return []


def earliest(token_ids, k):
    for n in (3, 2, 1):
        for start in range(len(token_ids) - n):
            if token_ids[start : start + n] == token_ids[-n:]:
                return token_ids[start + n : start + n + k]
    return []


def shortest_first(token_ids, k):
    for n in (1, 2, 3):
        for start in range(len(token_ids) - n - 1, -1, -1):
            if token_ids[start : start + n] == token_ids[-n:]:
                return token_ids[start + n : start + n + k]
    return []


WRONG = {
    "the earliest occurrence": earliest,
    "the shortest suffix first": shortest_first,
}
