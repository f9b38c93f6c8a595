"""The number of files and sockets that this process may have open. Introduced in chapter 5."""

from __future__ import annotations

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None

_SPARE = 64  # files that a process has open besides its connections


def allow_open_files(connections: int) -> str | None:
    """Raises this process's limit so that it can hold `connections` sockets; None where it can.

    Many systems allow 1,024 by default and more on request, up to a hard limit. Beyond that, returns one sentence that
    says what is allowed: connections over the limit fail.
    """
    if resource is None:
        return None
    wanted = connections + _SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= wanted:
        return None
    new = wanted if hard == unlimited else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (new, hard))
    except (OSError, ValueError):  # some systems refuse a number below their hard limit
        new = soft
    if new >= wanted:
        return None
    return (
        f"{connections} connections need {wanted} open files, and the system allows this process {new}: "
        "connections beyond that fail (ulimit -n shows the limit, ulimit -Hn its upper bound)"
    )
