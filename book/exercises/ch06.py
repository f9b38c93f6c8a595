"""Chapter 6: latencies of a sequential server, from the time at which each request is due. Check yours with `python -m book.check 6`."""


def latencies(due, seconds):
    """Latency of each request, in seconds since it was due.

    due: times in ascending order. The server takes one request at a time,
    in this order, and needs `seconds` for each.
    """
    raise NotImplementedError
