"""Chapter 3's sentences at extreme results, and the arithmetic that they stand on."""

import copy
import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from lib.bench.findings.batching import batch_causes, batch_counts, batch_sweep, schedulers
from lib.bench.findings.batching import ch03_batching as ch03
from lib.bench.measure.batch_model import step_times, turning_point
from lib.bench.measure.data_sheets import H100, LLAMA_7B
from lib.bench.measure.roofline import Roofline
from lib.bench.notebook.bars import bars
from lib.bench.notebook.spread import spread, spread_of_bars
from lib.bench.records.files import Run
from lib.models.checkpoint import GPT2_CONFIG

# The record for which these tests were written: a new recording says other things.
FROZEN = Path(__file__).with_name("frozen")

SWEEP = "batch_sweep_float32"


@pytest.fixture
def data():
    return json.loads((FROZEN / "03_batching.json").read_text())


def columns(data, name):
    return data["measurements"][name]["columns"]


def with_rates(data, rates):
    """The record with these rates of its sweep; no raw samples."""
    series = data["measurements"][SWEEP]
    series["columns"]["tok_s"], series["samples"] = rates, {}
    return data


def with_products(data, products, step=None):
    """The record with the products of each batch's steps, in ms per step."""
    columns(data, SWEEP)["products"] = products
    columns(data, SWEEP)["products_step"] = step or products
    return Run(data)


@pytest.mark.parametrize("bandwidth, rate", [(36e9, 187e9), (1.5e12, 19e12), (10e9, 1e12)])
@pytest.mark.parametrize("length", [11, 1000])
def test_the_turning_point_is_the_first_batch_bound_by_arithmetic(bandwidth, rate, length):
    roofline = Roofline("cpu", bandwidth, {"float32": rate})
    found = turning_point(GPT2_CONFIG, roofline, length, "float32")

    def by_arithmetic(batch):
        times = step_times(GPT2_CONFIG, roofline, batch, length, "float32")
        return times[1] >= times[0]

    around = (1, 2, 5, 50, 500, 3000) if found is None else (found - 1, found, found + 1, 2 * found)
    for batch in filter(None, around):
        assert by_arithmetic(batch) == (found is not None and batch >= found)


def test_the_7b_model_runs_out_of_memory_before_it_is_bound_by_arithmetic():
    assert turning_point(LLAMA_7B, H100, 1000, "bfloat16") is None
    most = batch_counts.room(1000)
    said = ch03.realistic()["realistic_finding"]
    assert f"{most} such sequences fit" in said and "no batch is bound by arithmetic" in said
    assert [row[0] for row in ch03.realistic_rows()] == ["1", "8", "64", str(most)]


def test_a_turning_point_that_no_dtype_has_is_said_once():
    points = {("float32", 1000): None, ("bfloat16", 1000): None}
    said = ch03.turning(points)["turning_finding"]
    assert said.count("no batch") == 1 and "float32 or bfloat16" in said
    both = ch03.turning({("float32", 11): 13, ("bfloat16", 11): 16})["turning_finding"]
    assert both.endswith("it turns at batch 13 in float32 and at batch 16 in bfloat16.")


def test_the_first_doubling_failed_on_the_recorded_run(data):
    said = ch03.render(Run(data))["first_doubling_finding"]
    assert "1.7 times as long" in said and said.endswith("the prediction failed.")


@pytest.mark.parametrize(
    "second, verdict",
    [(43.0, "as predicted."), (38.0, "a little above the prediction."), (10.0, "failed.")],
)
def test_the_first_doubling_is_free_only_where_it_was(data, second, verdict):
    rates = [21.6, second, *columns(data, SWEEP)["tok_s"][2:]]
    assert ch03.render(Run(with_rates(data, rates)))["first_doubling_finding"].endswith(verdict)


@pytest.mark.parametrize("second, kind", [(75.0, "products"), (45.0, "around")])
def test_the_products_explain_the_first_doubling_only_where_they_grow(data, second, kind):
    run = with_products(data, [44.0, second, 70, 80, 100, 150, 240])
    assert batch_causes.first_cause(run[SWEEP]).kind == kind
    why = ch03.predictions(run)[1].why
    assert ("time is theirs" in why) == (kind == "products")


def test_without_the_products_the_doubling_is_explained_by_chapter_8(data):
    run = Run(data)
    packed = ch03.chapter_8(run.slug)
    assert "not measured here" in ch03.render(run)["first_cause_finding"]
    assert "laid out once" in ch03.predictions(run, packed)[1].why
    series = packed.data["measurements"]["products"]
    dear = copy.deepcopy(packed.data)
    dear["measurements"]["products"]["columns"]["packed, float32"][1] *= 3
    dear["measurements"]["products"]["samples"] = {}
    assert "is free" not in batch_causes.laid_out(Run(dear)).text and series is not None


@pytest.mark.parametrize("factor_first, kind", [(1.0, "late"), (0.3, "products"), (0.62, "about")])
def test_the_gain_is_explained_by_the_slower_end(data, factor_first, kind):
    """A step of 64 at twice its bound; the first at 1/factor of it."""
    bound = columns(data, SWEEP)["bound_tok_s"]
    rates = [factor_first * bound[0], *columns(data, SWEEP)["tok_s"][1:-1], 0.62 * bound[-1]]
    with_rates(data, rates)
    first_step = 1e3 / rates[0]
    run = with_products(data, [0.9 * first_step, 70, 70, 80, 100, 150, 240])
    assert batch_causes.gain_cause(run).kind == kind


def test_overhead_is_blamed_only_where_the_products_are_a_small_part(data):
    run = with_products(data, [10.0, 11.0, 12, 20, 50, 100, 200])
    cause = batch_causes.gain_cause(run)
    assert cause.kind == "around" and "shares as it shares the weights" in cause.text
    run = with_products(data, [200.0, 11.0, 12, 20, 50, 100, 200])
    assert batch_causes.gain_cause(run).kind == "cannot tell"


def test_the_corrected_prediction_stands_under_the_first(data):
    steps = [1e3 * b / r for b, r in zip(*(columns(data, SWEEP)[c] for c in ("batch", "tok_s")))]
    found = ch03.predictions(with_products(data, [0.9 * s for s in steps]))
    verdicts = {p.claim: p.verdict for p in found[1:6]}
    assert list(verdicts.values())[0] == "the prediction failed"
    assert verdicts["the same, from the products timed alone"] == "as predicted"


@pytest.mark.parametrize(
    "got, words",
    [
        (1.87, "is about as much"),
        (1.4, "is less, as predicted"),
        (0.8, "gained nothing"),
        (5.0, "more than the 1.9 times"),
        (None, "was not measured here"),
    ],
)
def test_a_gain_against_the_count_of_steps(got, words):
    assert words in schedulers.promise(1.866, got)


def test_continuous_batching_that_is_slower_fails_its_prediction(data):
    for name in ("chat", "variable_lengths"):
        series = data["measurements"][name]
        series["columns"]["tok_s"][1], series["samples"] = 1.0, {}
    found = {p.claim: p for p in ch03.predictions(Run(data))}
    for name in ("chat", "variable lengths"):
        claim = f"gain of continuous batching, {name}, from the steps"
        assert found[claim].verdict == "the prediction failed"


@pytest.mark.parametrize(
    "factor, words", [(1.0, "about the same"), (0.881, "the scheduler cannot be the cause")]
)
def test_equal_lengths_are_no_gain_and_no_loss(data, factor, words):
    static = columns(data, "equal_lengths")["tok_s"][0]
    columns(data, "equal_lengths")["tok_s"] = [static, factor * static]
    assert words in ch03.render(Run(data))["equal_finding"]


@pytest.mark.parametrize(
    "gaps, firsts, words",
    [
        ([0.9, 0.2], [0.9, 1.5], "trades one for the other"),
        ([0.9, 0.2], [0.9, 0.9], "did not delay the new request"),
        ([1.117, 2.768], [1.12, 8.09], "the prediction failed"),
    ],
)
def test_the_budget_is_a_trade_only_where_it_trades(data, gaps, firsts, words):
    found = columns(data, "token_budget")
    found["longest_gap_s"], found["ttft_long_s"] = gaps, firsts
    assert words in ch03.render(Run(data))["trade_finding"]


def test_chunks_are_explained_by_their_products(data):
    columns(data, "token_budget")["products_s"] = [0.85, 0.19]
    found = ch03.predictions(Run(data))[-4:]
    assert "64" in found[0].why and found[1].verdict == "as predicted"
    columns(data, "token_budget")["products_s"] = [0.85, 0.105]  # in proportion to the rows
    assert ch03.predictions(Run(data))[-4].why == "no cause was measured"


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.1, 5.0, -1.0, None])
def test_new_columns_render_at_any_value(data, factor):
    value = [factor and factor * x for x in (44.0, 75, 70, 80, 100, 150, 240)]
    columns(data, "token_budget")["products_s"] = [factor, 0.2]
    run = with_products(data, value)
    for text in ch03.render(run).values():
        assert text and text[-1] in ".:" and "None" not in text and "nan" not in text
    assert len(ch03.predictions(run)) == 13


def test_spread_bars_reach_from_the_lowest_sample_to_the_highest():
    ax = Figure().subplots()
    spread(ax, [1, 2, 3], [[5.0, 9.0, 6.0], [4.0], 7.0])
    spread_of_bars(ax, [[1.0, 3.0], None])
    ends = [line.get_segments()[0][:, i].tolist() for line, i in zip(ax.collections, (1, 0))]
    assert ends == [[5.0, 9.0], [1.0, 3.0]]


def test_a_bars_number_stands_beside_its_spread():
    ax = Figure().subplots()
    bars(ax, ["slow", "fast", "once"], {"tokens/s": [2.0, 5.0, 1.0]})
    spread_of_bars(ax, [[1.0, 3.0], [4.0, 5.0], None])
    assert [text.xy[0] for text in ax.texts] == [3.0, 5.0, 1.0]


@pytest.mark.parametrize("rates, said", [([140, 116], "differ by as much"), ([140, 35], "does not compare them")])  # fmt: skip
def test_two_timings_of_the_same_steps_do_not_differ_by_a_factor(data, rates, said):
    columns(data, "equal_lengths")["tok_s"] = rates
    assert ch03.render(Run(data))["equal_finding"].endswith(
        f"{said} here." if "as" in said else f"{said}."
    )


def test_answers_that_could_not_be_compared():
    def said(same):
        return ch03.same_answers(same, 12)["same_answers_finding"]

    assert said(12) == "In this run all 12 answers are the same to the last token."
    assert said(11).startswith("In this run 11 of 12 answers are the same to the last token.")
    assert said(0).startswith("In this run 0 of 12")
    assert said(None).startswith("transformers' generate did not run here")


def test_a_padded_pass_that_cannot_be_judged_says_why(data):
    series = data["measurements"]["padding"]
    series["columns"].update(tokens=[192, 106], seconds=[0.46, 0.26])
    series["samples"]["seconds"] = [[0.36, 0.46, 0.53], [0.26, 0.37, 0.24]]
    said = ch03.padding(Run(data))["padding_finding"]
    assert said.endswith("the turns spread too widely for a verdict (from 1.4 to 2.0 times).")
    series["samples"]["seconds"] = []
    assert ch03.padding(Run(data))["padding_finding"].endswith("the tokens: as predicted.")


@pytest.mark.parametrize(
    "products, kind, words",
    [
        ([40, 80], "products", "the step's extra time is theirs"),
        ([40, 66], "products", "most of the step's extra time is theirs (65 %)"),
        ([40, 48], "around", "only a part of the step's extra time (20 %)"),
        ([40, 36], "around", "does not explain"),
        ([40, 160], "cannot tell", "more extra time than the whole step took"),
    ],
)
def test_the_first_doubling_is_given_to_the_products_only_as_far_as_they_grow(
    data, products, kind, words
):
    """A step that takes 40 ms more: 50 ms alone, 90 ms with two sequences."""
    with_rates(data, [20.0, 2 / 0.09, *columns(data, SWEEP)["tok_s"][2:]])
    found = batch_causes.first_cause(with_products(data, [*products, 1, 1, 1, 1, 1])[SWEEP])
    assert found.kind == kind and words in found.text


@pytest.mark.parametrize(
    "steps, words",
    [
        ((50, 90, 92, 88, 200, 300, 400), "From batch 2 to batch 8 a step takes about the same"),
        ((50, 90, 60, 70, 200, 300, 400), "From batch 2 to batch 8 a step takes no more time"),
        ((50, 90, 45, 45, 45, 45, 45), "From batch 2 to batch 64 a step takes no more time"),
        ((50, 90, 180, 88, 200, 300, 400), "A step at batch 4 takes 2 times as long as one at"),
        ((50, 55, 60, 66, 70, 80, 90), "From batch 2 to batch 4 a step takes about the same"),
    ],
)
def test_later_doublings_are_free_only_where_the_step_stays(data, steps, words):
    sizes = columns(data, SWEEP)["batch"]
    with_rates(data, [1e3 * b / ms for b, ms in zip(sizes, steps)])
    said = batch_sweep.doublings(Run(data)[SWEEP])
    assert words in said and "was free" not in said


def test_equal_doublings_are_not_ranked(data):
    with_rates(data, [20.0 * 1.9**i for i in range(7)])
    said = batch_sweep.doublings(Run(data)[SWEEP])
    assert said.startswith("All doublings gain about the same, 1.9 times the throughput.")


@pytest.mark.parametrize("static, continuous, words", [(96, 76, "1.26 times as fast. We predict at most"), (12, 12, "nothing to gain")])  # fmt: skip
def test_equal_steps_promise_nothing(static, continuous, words):
    assert words in ch03.promised_by_steps(static, continuous)["chat_promise_finding"]


@pytest.mark.parametrize(
    "gap, first, words",
    [
        ([0.9, [0.4, 0.9, 1.4]], 0.9, "cannot tell whether the chunks made"),
        ([0.9, 0.2], [0.5, 1.0, 2.0], "cannot tell whether the chunks delayed"),
        ([0.9, 0.2], 0.3, "did not delay the new request."),
        ([0.9, 0.2], 0.93, "by more than 10 %"),
        ([0.9, 0.9], 0.9, "made no gap shorter"),
    ],
)
def test_what_cannot_be_told_is_no_failure_of_the_chunks(data, gap, first, words):
    series = data["measurements"]["token_budget"]

    def column(name, pair):
        repeats = [x if isinstance(x, list) else [x, x] for x in pair]
        series["samples"][name] = repeats
        series["columns"][name] = [sorted(x)[len(x) // 2] for x in repeats]

    column("longest_gap_s", gap)
    column("ttft_long_s", [0.9, first])
    assert words in ch03.render(Run(data))["trade_finding"]


def test_the_running_sequences_are_in_the_predicted_wait(data):
    columns(data, "token_budget")["prompt_steps"] = [1, 9]
    data["measurements"]["token_budget"]["params"].update(prompt=512, decoding=6)
    found = ch03.predictions(Run(data))[-2]
    assert found.predicted == pytest.approx((9 * 64 - 10) / 518)  # the last chunk has 48 tokens
    columns(data, "token_budget").update(
        ttft_long_s=[0.9, 0.45],
        products_s=[0.85, 0.19],
        longest_gap_s=[0.9, 0.22],
        budget=[518, 64],
    )
    data["measurements"]["token_budget"]["samples"] = {}
    found = ch03.predictions(Run(data))
    assert found[-2].why == "no cause was measured" and "64" in found[-4].why
