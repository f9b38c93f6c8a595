"""Chapter 1's sentences about how steady its ceilings and single steps are."""

import pytest

from lib.bench.findings.forward_pass.forward_ceilings import first_steps, steadiness
from lib.bench.findings.forward_pass.forward_latency import latency
from lib.bench.measure.roofline import Roofline
from lib.bench.records.files import Run


def said(**spread):
    roofline = Roofline("a machine", 1e10, {"float32": 1e11}, spread=spread)
    return steadiness(roofline)["steadiness_finding"]


def test_a_ceiling_whose_rounds_differ_makes_its_bounds_rough():
    text = said(bandwidth=0.82, float32=0.04, bfloat16=3.0)
    assert text.startswith(
        "The rounds of the memory bandwidth range over 82 % of their median and those of the float32 rate over 4 %. "
        "So a bound that is computed here from the memory bandwidth is a rough number"
    )
    assert "from the memory bandwidth and the float32 rate is" in said(bandwidth=5.0, float32=0.3)


@pytest.mark.parametrize(
    "spread, ending",
    [
        (0.0, "the word about allows."),
        (0.1, "the word about allows."),
        (0.2, "could have got the other one."),
        (9.0, "uses no ceiling."),
    ],
)
def test_the_words_follow_from_the_wider_of_the_two(spread, ending):
    assert said(bandwidth=spread, float32=0.0).endswith(ending)
    assert said(bandwidth=0.0, float32=spread).endswith(ending)
    assert said(float32=spread).startswith("The rounds of the float32 rate range over")


def test_without_rounds_nothing_is_said_about_them():
    assert "not measured here" in said() and said(bfloat16=0.5) == said()


@pytest.mark.parametrize(
    "seconds, shown",
    [([1.0, 1.5, 0.9], False), ([1.0, 1.0, 1.0], True), ([0.001, 9.0], False)],
)
def test_a_table_shows_growth_only_where_the_times_vary_less(seconds, shown):
    text = first_steps(40, seconds)["first_steps_finding"]
    assert ("cannot show the growth" not in text) == shown and "grow by" in text


@pytest.mark.parametrize("prompt, seconds", [(40, []), (40, [1.0]), (0, [1.0, 2.0]), (4, [0, 0])])
def test_steps_that_cannot_be_compared_are_not_measured(prompt, seconds):
    assert "not measured here" in first_steps(prompt, seconds)["first_steps_finding"]


@pytest.mark.parametrize("new, means", [(4, True), (1, False), (None, False)])
def test_a_bound_over_several_tokens_is_not_that_of_one_pass(new, means):
    columns = {"prompt": [64, 512], "no_cache": [114.0, 634.0], "bound": [62.8, 513.0]}
    params = {} if new is None else {"new_tokens": new}
    series = {"unit": "ms", "params": params, "seed": 0, "columns": columns, "samples": {}}
    run = Run({"measurements": {"token_time_by_prompt": series}})
    over = latency(run)["over_bound_finding"]
    assert ("Both are means over 4 new tokens." in over) == means
    assert ("longer than the prompt" in over) == means
