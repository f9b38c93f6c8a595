"""Chapter 13: waiting for one of several servers. Check yours with `python -m book.check 13`."""


def waits(arrivals, seconds, servers):
    """Seconds that each request waits before its service begins, as a list.

    Requests are served in the order of `arrivals`, which is ascending; each
    goes to the server that is free first. seconds: their service times.
    """
    raise NotImplementedError
