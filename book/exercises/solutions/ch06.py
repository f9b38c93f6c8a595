"""Chapter 6: latencies of a sequential server, from the time at which each request is due. A solution, and answers that are wrong, by what is wrong with them."""


def latencies(due, seconds):
    result, free = [], 0.0
    for time in due:
        free = max(free, time) + seconds
        result.append(free - time)
    return result


def since_sent(due, seconds):
    return [seconds for _ in due]


def never_idle(due, seconds):
    return [(i + 1) * seconds + due[0] - time for i, time in enumerate(due)]


WRONG = {
    "the clock starts when the request is sent": since_sent,
    "the server is never idle": never_idle,
}
