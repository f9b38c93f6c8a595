"""Chapter 13: waiting for one of several servers. A solution, and answers that are wrong, by what is wrong with them."""


def waits(arrivals, seconds, servers):
    free, found = [0] * servers, []
    for at, length in zip(arrivals, seconds):
        start = max(at, min(free))
        free[free.index(min(free))] = start + length
        found.append(start - at)
    return found


def in_turn(arrivals, seconds, servers):
    free, found = [0] * servers, []
    for i, (at, length) in enumerate(zip(arrivals, seconds)):
        start = max(at, free[i % servers])
        free[i % servers] = start + length
        found.append(start - at)
    return found


def busy_from_arrival(arrivals, seconds, servers):
    free, found = [0] * servers, []
    for at, length in zip(arrivals, seconds):
        found.append(max(at, min(free)) - at)
        free[free.index(min(free))] = at + length
    return found


WRONG = {
    "the servers take turns": in_turn,
    "a service that begins when its request arrives": busy_from_arrival,
}
