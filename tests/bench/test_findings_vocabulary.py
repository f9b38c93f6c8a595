"""The words hold whatever the numbers are: every function of the vocabulary, fed with extreme results."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.bench.findings.curves import crossing, growth, ordering, scaling, threshold, trend
from lib.bench.findings.values import cell, number, percent, quantity, times, value
from lib.bench.findings.vocabulary import (
    MISSING,
    compare,
    ratio_range,
    share,
    versus_bound,
    versus_prediction,
)
from lib.bench.measure.timing import Timing
from lib.bench.records.series import make_series

NOWHERE = (None, math.nan, math.inf, -math.inf, Timing(()), [math.nan, math.inf], [])
positive = st.floats(1e-6, 1e6)
anything = st.one_of(
    st.none(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.lists(st.floats(-10, 1e6), max_size=12),
    st.lists(positive, min_size=1, max_size=4).map(lambda s: Timing(tuple(s))),
)
curve = st.lists(st.tuples(st.floats(-5, 1e4), anything), max_size=6)


@pytest.mark.parametrize(
    "ratio, kind, words",
    [
        (0.1, "several", "A is several times as fast as B (10 times: 100 ms against 1 s)"),
        (0.3, "several", "A is several times as fast as B (3.3 times: 300 ms against 1 s)"),
        (0.55, "number", "A is 1.8 times as fast as B (550 ms against 1 s)"),
        (0.9, "little", "A is a little faster than B (11 %: 900 ms against 1 s)"),
        (0.95, "about", "A and B take about the same time (950 ms against 1 s)"),
        (1.0, "about", "A and B take about the same time (1 s against 1 s)"),
        (1.1, "about", "A and B take about the same time (1.10 s against 1 s)"),
        (1.2, "little", "A is a little slower than B (20 %: 1.20 s against 1 s)"),
        (1.8, "number", "A takes 1.8 times as long as B (1.80 s against 1 s)"),
        (5.0, "several", "A takes several times as long as B (5 times: 5 s against 1 s)"),
    ],
)
def test_times_are_compared_in_the_books_words(ratio, kind, words):
    found = compare(ratio, 1.0, "A", "B")
    assert (found.text, found.kind) == (words, kind)


@pytest.mark.parametrize(
    "ratio, words",
    [
        (0.3, "B has several times the throughput of A (3.3 times: 100 tok/s against 30 tok/s)"),
        (0.9, "A has a little less throughput than B (10 %: 90 tok/s against 100 tok/s)"),
        (1.0, "A and B have about the same throughput (100 tok/s against 100 tok/s)"),
        (1.2, "A has a little more throughput than B (20 %: 120 tok/s against 100 tok/s)"),
        (1.8, "A has 1.8 times the throughput of B (180 tok/s against 100 tok/s)"),
    ],
)
def test_amounts_are_compared_with_more_and_less(ratio, words):
    found = compare(100 * ratio, 100, "A", "B", what="throughput", unit="tok/s")
    assert found.text == words


def test_overlapping_repeats_are_not_told_apart():
    wide = compare([1.0, 1.5, 2.2], [1.4, 2.5, 2.6], "A", "B")
    assert wide.kind == "cannot tell" and "cannot tell A and B apart" in wide.text
    assert compare([1.0, 1.01, 1.02], [1.01, 1.02, 1.03], "A", "B").kind == "about"
    assert compare([1.0, 1.1, 1.2], [2.0, 2.1, 2.2], "A", "B").direction == -1
    assert compare([1.0, 1.5, 2.2], 1.6, "A", "B").kind == "cannot tell"


@pytest.mark.parametrize("gone", NOWHERE)
def test_what_was_not_measured_is_said(gone):
    assert compare(gone, 1.0, "A", "B").text == f"A {MISSING}"
    assert compare(gone, gone, "A", "B").text == "A and B were not measured here"
    for found in (
        versus_prediction(1.0, gone),
        versus_bound(1.0, gone),
        share(gone, 1.0),
        trend([1, 2], [gone, 1.0]),
        scaling([1, 2], [1.0, gone]),
        threshold([1], [gone], 2.0),
        crossing([1], [gone], [1.0], "A", "B"),
        ordering({"A": gone}),
    ):
        assert found.kind == "missing" and ("measured" in found.text)
    assert growth(gone, 1.0) is None


@pytest.mark.parametrize("a, b", [(0.0, 1.0), (1.0, 0.0), (-1.0, 2.0), (2.0, -1.0)])
def test_zero_and_negative_values_form_no_ratio(a, b):
    found = compare(a, b, "A", "B")
    assert found.kind == "undefined" and "no ratio" in found.text
    assert versus_prediction(a, b).kind == "failed"
    assert versus_prediction(0.0, 0.0).verdict == "as predicted"


@pytest.mark.parametrize(
    "ratio, verdict",
    [
        (0.3, "the prediction failed"),
        (0.74, "the prediction failed"),
        (0.8, "a little below the prediction"),
        (0.9, "as predicted"),
        (1.0, "as predicted"),
        (1.1, "as predicted"),
        (1.11, "a little above the prediction"),
        (1.25, "a little above the prediction"),
        (1.26, "the prediction failed"),
        (5.0, "the prediction failed"),
    ],
)
def test_predictions_get_the_verdict_of_their_ratio(ratio, verdict):
    found = versus_prediction(0.002, 0.002 * ratio)
    assert found.verdict == verdict and found.text.startswith(verdict)
    if found.kind == "failed":
        want = f"measured {quantity(0.002 * ratio, 's')}, predicted 2 ms ({times(ratio)})"
        assert found.text == f"the prediction failed: {want}"


def test_a_prediction_within_wide_repeats_is_not_judged():
    assert versus_prediction(1.0, [0.8, 1.3, 1.6]).verdict == "this run cannot tell"
    assert versus_prediction(1.0, [0.99, 1.0, 1.01]).verdict == "as predicted"
    assert versus_prediction(1.0, [1.8, 2.0, 2.3]).verdict == "the prediction failed"


def test_a_time_below_its_bound_blames_the_ceiling():
    assert versus_bound(1.0, 0.95).kind == "about"
    assert "a ceiling was measured too low" in versus_bound(1.0, 0.6).text
    assert versus_bound(1.0, 2.2).text == "2.2 times the bound (2.20 s, bound 1 s)"


@pytest.mark.parametrize(
    "part, word",
    [
        (0, "nothing (0 %)"),
        (0.03, "a small part (3 %)"),
        (0.3, "less than half (30 %)"),
        (0.13, "less than a quarter (13 %)"),
        (0.5, "about half (50 %)"),
        (0.91, "most (91 %)"),
        (0.97, "almost all (97 %)"),
        (1.0, "almost all (100 %)"),
    ],
)
def test_shares(part, word):
    assert share(part).text == word
    assert share(part * 7, 7).text == word


def test_shares_that_cannot_be():
    assert "measured wrongly" in share(1.3).text
    assert share(-0.1).kind == share(1, 0).kind == "undefined"


@pytest.mark.parametrize(
    "ys, kind",
    [
        ([1, 2, 3], "rises"),
        ([3, 2, 1], "falls"),
        ([2.0, 2.6, 3.2], "rises"),
        ([1, 1.05, 1.02], "flat"),
        ([0, 0, 0], "flat"),
        ([1, 3, 2], "peaks"),
        ([3, 1, 2], "dips"),
        ([1, 3, 1, 3], "varies"),
        ([1, 1.9, 1.85, 3], "rises"),
        ([[1, 2, 3], [2, 2, 2], [2.4, 2.5, 2.6]], "cannot tell"),
        ([None, 1, 2], "rises"),
        ([None, 1, None], "missing"),
    ],
)
def test_trends(ys, kind):
    assert trend(list(range(1, len(ys) + 1)), ys, "tok/s").kind == kind


def test_a_trend_names_its_peak_and_its_ends():
    found = trend([1, 8, 64], [2.0, 4.0, 1.0], "tok/s", "{} users")
    ends = "from 2 tok/s to 1 tok/s"
    assert found.text == f"rises to a peak of 4 tok/s at 8 users and falls again ({ends})"


@pytest.mark.parametrize(
    "ys, kind",
    [
        ([1, 8], "proportional"),
        ([1, 8.5], "proportional"),
        ([1, 5], "less"),
        ([1, 20], "more"),
        ([1, 1.05], "flat"),
        ([1, 0.5], "falls"),
        ([0, 1], "missing"),
    ],
)
def test_scaling(ys, kind):
    assert scaling([64, 512], ys).kind == kind


def test_thresholds_crossings_and_orders():
    xs = [1, 2, 4, 8]
    assert threshold(xs, [1, 2, 3, 4], 3).text == "reaches 3 first at 4"
    assert threshold(xs, [1, 2, 3, 4], 9).text == "never reaches 9 (at most 4)"
    found = crossing(xs, [1, 2, 5, 9], [3, 3, 3, 3], "A", "B", "{} users")
    assert found.text == "A goes above B between 2 and 4 users" and found.direction == 1
    assert "never cross" in crossing(xs, [4] * 4, [3] * 4, "A", "B").text
    assert crossing(xs, [3] * 4, [3.1] * 4, "A", "B").kind == "about"
    assert crossing(xs, [1, 5, 1, 5], [3] * 4, "A", "B").kind == "varies"
    order = ordering({"A": 2.0, "B": 1.0, "C": 1.05, "D": None})
    assert (
        order.text
        == "B (1 s) and C (1.05 s), about the same, then A (2 s); D was not measured here"
    )
    assert ordering({"A": 1.0, "B": 1.0, "C": 1.0}).text.startswith("A (1 s), B (1 s) and C (1 s)")


@pytest.mark.parametrize(
    "x, unit, text",
    [
        (0.0031, "s", "3.10 ms"),
        (2.51e-5, "s", "25.1 µs"),
        (1925.4, "s", "1,925 s"),
        (628.0, "ms", "628 ms"),
        (36341672469, "B/s", "36.3 GB/s"),
        (0, "B", "0 B"),
        (8.4775, "tokens/s", "8.48 tokens/s"),
        (0.01234, "", "0.0123"),
        (math.nan, "s", "not measured"),
        (None, "s", "not measured"),
    ],
)
def test_numbers_look_the_same_everywhere(x, unit, text):
    assert quantity(x, unit) == text


def test_small_things_about_numbers():
    assert (number(10), number(1045.4), percent(0.001)) == ("10", "1,045", "less than 1 %")
    assert (times(1.84), times(12.3), times(0.424)) == ("1.8 times", "12 times", "0.42 times")
    series = make_series("s", "s", {"a": [Timing((1.0, 3.0)), Timing((2.0,))], "b": [1, None]})
    assert cell(series, "a", 0, 2.0) == [2.0, 6.0] and cell(series, "b", 0) == 1
    assert cell(series, "b", 1) is cell(series, "c", 0) is cell(series, "a", 2) is None
    assert cell(None, "a", 0) is None


def test_outliers_of_many_repeats_are_no_range():
    many = value([1.0] * 30 + [9.0])
    assert (many.low, many.high, many.spread) == (1.0, 1.0, 0.0)
    assert value([1.0]).spread is None and value(1.0).spread is None


@given(a=positive, b=positive)
def test_the_direction_agrees_with_the_numbers(a, b):
    found, text = compare(a, b, "A", "B"), compare(a, b, "A", "B").text
    assert ("faster" in text or "as fast as" in text) == (found.direction < 0)
    assert ("slower" in text or "as long as" in text) == (found.direction > 0)
    if found.direction:
        assert (a > b) == (found.direction > 0)
    if factor := re.search(r"([\d.,]+) times", text):
        assert float(factor[1].replace(",", "")) >= 1.2
    amount = compare(a, b, "A", "B", what="memory", unit="B")
    if amount.direction:
        leader = "A" if a > b else "B"
        assert amount.text.startswith(leader) or " a little less " in amount.text


@given(predicted=positive, ratio=st.floats(0.01, 100))
def test_no_prediction_is_confirmed_beyond_ten_percent(predicted, ratio):
    found = versus_prediction(predicted, predicted * ratio)
    assert (found.verdict == "as predicted") == (abs(ratio - 1) <= 0.1 + 1e-6) or (
        abs(abs(ratio - 1) - 0.1) < 1e-6
    )
    if "above" in found.text:
        assert ratio > 1
    if "below" in found.text:
        assert ratio < 1


@given(a=anything, b=anything)
def test_every_word_is_fit_to_print(a, b):
    for found in (
        compare(a, b, "A", "B"),
        versus_prediction(a, b),
        versus_bound(a, b),
        share(a, b),
    ):
        _fit(found.text)


@given(points=curve, other=curve)
def test_every_curve_is_fit_to_print(points, other):
    xs, ys = [x for x, _ in points], [y for _, y in points]
    zs = ([y for _, y in other] + [None] * len(xs))[: len(xs)]
    rising = trend(xs, ys)
    found = [(x, value(y).middle) for x, y in points if value(y).known]
    found.sort(key=lambda point: point[0])  # stable, as trend sorts: points may share an x
    if rising.kind == "rises":
        assert found[0][1] < found[-1][1]
    if rising.kind == "falls":
        assert found[0][1] > found[-1][1]
    named = dict(zip("ABCDEF", ys))
    for words in (
        rising,
        scaling(xs, ys),
        threshold(xs, ys, 3.0),
        crossing(xs, ys, zs, "A", "B"),
        ordering(named) if named else rising,
    ):
        _fit(words.text)


def _fit(text):
    assert text and not re.search(r"\b(nan|inf|None)\b|[`*]|\de\+", text), text


def test_a_ratio_has_the_noise_of_both_values():
    assert ratio_range([0.99, 1.0, 1.01], 0.5) == 2.0, "the repeats agree: one number"
    assert ratio_range(3.0, [1.0, 1.5, 2.0]) == [1.5, 2.0, 3.0]
    assert ratio_range([1.0, 2.0, 4.0], [1.0, 1.0, 2.0]) == [0.5, 2.0, 4.0]
    assert ratio_range(None, 1.0) is None and ratio_range(1.0, 0.0) is None
    assert versus_prediction(1.2, ratio_range(1.0, [0.6, 1.0, 2.0]), "×").kind == "cannot tell"
