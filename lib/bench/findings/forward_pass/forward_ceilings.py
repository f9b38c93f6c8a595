"""The sentences of chapter 1 about how steady its numbers are: the measured ceilings, and single steps.

Introduced in chapter 1.
"""

from collections.abc import Sequence
from statistics import median

from lib.bench.findings.values import listed, percent
from lib.bench.findings.vocabulary import ABOUT, LITTLE, missing
from lib.bench.measure.roofline import Roofline

USED = {"bandwidth": "memory bandwidth", "float32": "float32 rate"}  # in the bounds of this chapter


def steadiness(roofline: Roofline) -> dict[str, str]:
    """What the spread of the rounds of each ceiling says about the bounds that come from it."""
    found = {name: roofline.spread[key] for key, name in USED.items() if key in roofline.spread}
    if not found:
        said = missing("the spread of the ceilings").sentence
        return {"steadiness_finding": f"{said} A single round says nothing about it."}
    parts = [f"those of the {name} over {percent(spread)}" for name, spread in found.items()]
    parts[0] = parts[0].replace("those", "The rounds", 1) + " of their median"
    said = f"{listed(parts)}".replace(" over ", " range over ", 1) + "."
    rough = [f"the {name}" for name, spread in found.items() if spread > LITTLE]
    uneven = [f"the {name}" for name, spread in found.items() if spread > ABOUT]
    if rough:
        said += (
            f" So a bound that is computed here from {listed(rough)} is a rough number, and so is each verdict that compares "
            "a time with such a bound. A comparison of two measured times uses no ceiling."
        )
    elif uneven:
        said += (
            f" A bound that is computed here from {listed(uneven)} is known no better than that, so a time near the limit "
            "between two verdicts could have got the other one."
        )
    else:
        said += " That is within the 10 % that the word about allows."
    return {"steadiness_finding": said}


def first_steps(prompt: int, seconds: Sequence[float]) -> dict[str, str]:
    """Whether the table of the first steps can show that each computes one token more than the step before it.

    prompt: tokens of the first step. seconds: of each step, measured once.
    """
    if len(seconds) < 2 or prompt < 1 or median(seconds) <= 0:
        return {"first_steps_finding": missing("the time of the first steps").sentence}
    growth = (len(seconds) - 1) / prompt
    width = (max(seconds) - min(seconds)) / median(seconds)
    said = (
        f"From the first of these steps to the last the tokens grow by {percent(growth)}. Their times, each measured once, "
        f"range over {percent(width)} of their median"
    )
    if width > growth:
        said += ", more than the tokens grow, so that this table cannot show the growth"
    return {"first_steps_finding": f"{said}."}
