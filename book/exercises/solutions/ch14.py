"""Chapter 14: what a query sees through a sliding window. A solution, and answers that are wrong, by what is wrong with them."""


def visible(position, window):
    first = 0 if window is None else max(0, position + 1 - window)
    return range(first, position + 1)


def one_more(position, window):
    first = 0 if window is None else max(0, position - window)
    return range(first, position + 1)


def before_the_first(position, window):
    first = 0 if window is None else position + 1 - window
    return range(first, position + 1)


WRONG = {
    "the window without the query's own position": one_more,
    "positions below zero": before_the_first,
}
