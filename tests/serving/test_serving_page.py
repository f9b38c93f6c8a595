"""The page at / in a real browser: type, stream, stop, burst, numbers move."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest

from tests.serving_support import start

pytest_plugins = ["tests.serving_fixtures"]
pytestmark = pytest.mark.browser

SECONDS = 60_000  # ms; a busy machine with two cores runs the server, the browser and this


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if path is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = driver.chromium.launch(
            executable_path=path,
            args=[*sandbox, "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def small(checkpoint):
    """Room for 4 sequences at a time and 24 in all."""
    with start(
        checkpoint, "--max-num-seqs", "4", "--max-concurrent-requests", "24", "--num-blocks", "513"
    ) as process:
        yield process


@pytest.fixture
def page(browser, small):
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    page.problems, page.elsewhere = [], []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((small.url, "data:"))
            else page.elsewhere.append(request.url)
        ),
    )
    page.goto(small.url)
    page.wait_for_function("() => document.getElementById('model').textContent === 'tiny'")
    page.wait_for_selector("[data-state=idle]")
    yield page
    assert not page.problems and not page.elsewhere
    context.close()


def number(page, name: str) -> int:
    return int(page.inner_text("#" + name))


def test_type_and_stream(page) -> None:
    page.click("summary")
    page.fill("#seed", "7")  # a random model that is free to choose may end its answer at once
    page.focus("#prompt")
    page.keyboard.type("Hello")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "() => document.querySelector('.turn.assistant .text').textContent.length > 2"
    )
    assert page.inner_text(".turn.user") == "Hello" and page.input_value("#prompt") == ""
    page.wait_for_selector(".turn.assistant:not(.writing)")
    assert re.search(r"first token \d+ ms · \d+ tokens", page.inner_text(".turn.assistant .meta"))
    page.click("#clear")
    assert page.locator(".turn").count() == 0


def test_sampling_reaches_the_server(page) -> None:
    page.click("summary")
    for name, value in (("max_tokens", "5"), ("seed", "7")):
        page.fill("#" + name, value)
    answers = []
    for _ in range(2):
        page.fill("#prompt", "Again")
        with page.expect_request("**/v1/chat/completions") as sent:
            page.keyboard.press("Control+a")
            page.press("#prompt", "Enter")
        body = sent.value.post_data_json
        assert (body["max_tokens"], body["seed"], body["top_p"], body["stream"]) == (
            5,
            7,
            0.95,
            True,
        )
        page.wait_for_selector(".turn.assistant:not(.writing)")
        answers.append(page.inner_text(".turn.assistant .text"))
        page.click("#clear")
    assert answers[0] == answers[1]
    page.fill("#max_tokens", "99999")
    page.fill("#prompt", "Too long")
    page.press("#prompt", "Enter")
    page.wait_for_selector(".turn.error")
    assert "max_tokens" in page.inner_text(".turn.error")


def test_stop(page) -> None:
    # A random model may end its answer by itself; this one may not.
    page.route(
        "**/v1/chat/completions",
        lambda route: route.continue_(
            post_data=json.dumps({**route.request.post_data_json, "ignore_eos": True})
        ),
    )
    page.click("summary")
    page.fill("#max_tokens", "1900")
    page.fill("#prompt", "Go on")
    page.press("#prompt", "Enter")
    page.wait_for_selector("#running-list .mine")
    page.keyboard.press("Escape")
    page.wait_for_selector(".turn.assistant:not(.writing)")
    assert "stopped" in page.locator(".turn.assistant .meta").inner_text()
    page.wait_for_function("() => document.getElementById('used').textContent === '0'")
    assert page.evaluate("document.activeElement.id") in ("prompt", "")
    assert page.locator("#send").is_visible() and page.locator("#stop").is_hidden()


def test_burst_and_moving_numbers(page) -> None:
    # The largest number that each has shown: what is right for a moment may be gone before a slow test looks.
    page.evaluate("""() => { window.largest = {}; for (const id of ['rate', 'ttft', 'itl']) {
        const element = document.getElementById(id); window.largest[id] = 0; new MutationObserver(
        () => { window.largest[id] = Math.max(window.largest[id], parseFloat(element.textContent) || 0); }
        ).observe(element, {childList: true, characterData: true, subtree: true}); } }""")
    page.fill("#burst-count", "16")
    page.fill("#burst-tokens", "200")
    page.press("#burst-tokens", "Enter")
    page.wait_for_function(
        "() => +document.getElementById('running').textContent === 4"
        " && +document.getElementById('waiting').textContent > 0"
    )
    page.wait_for_function("() => +document.getElementById('used').textContent > 0")
    page.wait_for_function("() => document.querySelectorAll('#running-list li').length === 4")
    page.wait_for_function("""() => {  // the pool is coloured by request
        const pool = document.getElementById('pool');
        const data = pool.getContext('2d').getImageData(0, 0, pool.width, pool.height).data, seen = new Set();
        for (let i = 0; i < data.length; i += 4) seen.add(data[i] >> 4 << 8 | data[i + 1] >> 4 << 4 | data[i + 2] >> 4);
        return seen.size >= 4; }""")
    page.wait_for_function(
        "() => document.getElementById('burst-result').textContent.startsWith('16 of 16 done')"
    )
    page.wait_for_function("() => Object.values(window.largest).every((number) => number > 0)")
    page.wait_for_function("() => document.getElementById('used').textContent === '0'")
    page.wait_for_selector("[data-state=idle]")
    label = page.get_attribute("#pool", "aria-label")
    used = "The block pool: 0 of 512 blocks in use by 0 sequences, "
    assert re.fullmatch(used + "[1-9][0-9]* cached", label), label
    caption = page.text_content("#pool-caption")
    assert re.search(r"Cached blocks: \d+ % of all prompt tokens were found there", caption)
    assert number(page, "running") == number(page, "waiting") == 0


def test_a_burst_beyond_the_limit_is_refused_and_can_be_stopped(page) -> None:
    page.fill("#burst-count", "40")
    page.fill("#burst-tokens", "1000")
    page.click("#burst-send")
    page.wait_for_function(
        "() => document.getElementById('burst-result').textContent.includes('refused: 503')"
    )
    page.click("#burst-stop")
    page.wait_for_function(
        "() => document.getElementById('burst-result').textContent.includes('refused: stopped')"
    )
    page.wait_for_function("() => document.getElementById('used').textContent === '0'")


def test_buttons_stay_where_they_are_while_a_burst_runs(page) -> None:
    where = """() => Object.fromEntries([...document.querySelectorAll('button, h3, #pool')].map(
        (e, i) => [e.id || i, [e.offsetLeft, e.offsetTop]]).filter(([, [x, y]]) => x || y))"""
    page.fill("#burst-count", "8")
    page.fill("#burst-tokens", "1000")
    before = page.evaluate(where)
    page.click("#burst-send")
    page.wait_for_function("() => document.querySelectorAll('#running-list li').length === 4")
    assert page.evaluate(where) == before
    page.click("#burst-stop")
    page.wait_for_function("() => document.getElementById('burst-stop').disabled")
    page.wait_for_function("() => document.getElementById('used').textContent === '0'")


POOL = {
    "num_waiting": 0, "waiting": [], "max_num_seqs": 4, "preemptions": 0, "block_size": 16, "first_block": 1,
    "prefix_queries": 100, "prefix_hits": 50, "time": 1, "tokens": 0, "ttft_ms": [], "itl_ms": [],
}  # fmt: skip
LARGE = {
    **POOL, "running": [["a", 0, 8, 8, 16, [], 5]], "blocks_total": 8000, "blocks_free": 7992, "num_cached": 3,
    "blocks_cached": [], "blocks_per_square": 2, "squares": [[0, 0, 2, 32, 0], [1, 0, 2, 8, 0], [2, 0, 1, 4, 1], [3, -1, 0, 0, 2]],
}  # fmt: skip


def test_a_square_of_several_blocks_is_drawn_and_explained(page) -> None:
    """Heights of the first five squares: all written, half in use and less written, shared by cached blocks, free."""
    page.route(
        "**/engine/events",
        lambda route: route.fulfill(
            content_type="text/event-stream", body=f"data: {json.dumps(LARGE)}\n\n"
        ),
    )
    page.reload()
    page.wait_for_function("() => document.getElementById('total').textContent === '8000'")
    assert number(page, "used") == 5
    caption = page.inner_text("#pool-caption")
    assert "A square is 2 blocks" in caption and "holds most of them" in caption
    page.wait_for_timeout(600)  # blocks fade in
    columns = """() => {
        const canvas = document.getElementById('pool'), ratio = canvas.width / canvas.clientWidth, pitch = 7;
        const data = canvas.getContext('2d');
        return [0, 1, 2, 3, 4].map(i => new Set(Array.from({length: 5}, (_, y) =>
            [...data.getImageData((i * pitch + 2) * ratio, y * ratio, 1, 1).data].join())).size); }"""
    looks = page.evaluate(columns)
    assert looks[0] == looks[3] == looks[4] == 1 and min(looks[1:3]) >= 2, looks


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits(browser, small, width: int, scheme: str) -> None:
    """No sideways scrolling, and everything that can be used is there, named, and reachable by Tab."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(small.url)
    page.wait_for_selector("[data-state=idle]")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) > 382) == (scheme == "light")
    nameless = page.evaluate("""() => [...document.querySelectorAll('button, input, textarea, canvas')].filter(
        e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map(e => e.id)""")
    assert nameless == []
    reached = set()
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"prompt", "send", "SUMMARY", "clear", "burst-count", "burst-send"} <= reached
    context.close()


def test_the_key_is_asked_for(browser, checkpoint) -> None:
    with start(checkpoint, "--api-key", "sesame") as process:
        context = browser.new_context()
        page = context.new_page()
        page.goto(process.url)
        page.fill("#key", "sesame")
        page.press("#key", "Enter")
        page.wait_for_selector("[data-state=idle]", timeout=SECONDS)
        page.wait_for_function("() => document.getElementById('model').textContent === 'tiny'")
        assert page.locator("#key-form").is_hidden()
        context.close()
