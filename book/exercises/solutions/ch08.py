"""Chapter 8: the fewest batch sizes to record for a limit on the padding. A solution, and answers that are wrong, by what is wrong with them."""


def fewest_sizes(largest, most):
    return sorted(range(largest, 0, -(most + 1)))


def from_below(largest, most):
    return sorted({*range(1, largest, most + 1), largest})


def step_of_padding(largest, most):
    return sorted(range(largest, 0, -max(1, most)))


WRONG = {
    "steps from 1 upwards": from_below,
    "a step as large as the padding": step_of_padding,
}
