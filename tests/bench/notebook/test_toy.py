"""The toy of chapters 2 to 7: what the real scheduler and cache managers do with it, and that the diagrams show that."""

import re

import pytest

from lib.bench.notebook import toy
from lib.bench.paths import repository
from lib.cache.block_manager import BlockManager
from lib.cache.manager import NoCache
from lib.cache.slot_manager import SlotManager
from lib.engine.scheduler import Scheduler


def played(cache, arrivals=toy.ARRIVALS, budget=toy.BUDGET):
    return toy.play(Scheduler(cache, max_num_seqs=2, max_num_batched_tokens=budget), arrivals)


@pytest.fixture
def paged():
    return played(BlockManager(toy.NUM_BLOCKS, toy.BLOCK_SIZE))


@pytest.mark.parametrize(
    "name, without, kept", [("A", [3, 4, 5, 6, 7], [3, 1, 1, 1, 1]), ("B", [4, 5, 6], [4, 1, 1])]
)
def test_a_cache_computes_each_row_once(name, without, kept):
    assert [s.num_tokens for s in played(NoCache(12), {name: 1})] == without
    assert [s.num_tokens for s in played(SlotManager(1, 12), {name: 1})] == kept


def test_b_joins_in_the_second_step_as_a_part_of_one_flat_batch(paged):
    batch = paged[1].batch
    assert toy.text(batch.input_ids) == "on Once upon a"
    assert batch.positions.tolist() == [3, 0, 1, 2]
    assert batch.query_start_loc.tolist() == [0, 1, 4]
    assert paged[1].streamed == {"A": "the"}, "B's prompt is not complete"


def test_the_third_block_is_taken_in_step_3_and_b_gives_way_in_step_4(paged):
    assert paged[2].block_ids == {"A": [1, 3], "B": [2]} and paged[2].stored == {"A": 5, "B": 4}
    assert (paged[3].preempted, paged[3].waiting) == (["B"], ["B"])
    assert [s.waiting for s in paged[4:6]] == [["B"], []]
    assert [toy.positions(s, "B") for s in paged] == ["–", "0–2", "3", "–", "–", "0–3", "4", "5"]
    assert paged[5].block_ids == {"B": [2, 3]} and not paged[5].streamed


def test_every_answer_is_streamed_word_by_word_whatever_the_cache(paged):
    for steps in (paged, played(SlotManager(2, 8)), played(NoCache(12))):
        for name, answer in toy.ANSWERS.items():
            assert [s.streamed[name] for s in steps if name in s.streamed] == answer


def test_without_a_shortage_of_room_five_steps_are_enough():
    steps = played(SlotManager(2, 12))
    assert len(steps) == 5 and not any(s.preempted or s.waiting for s in steps)
    assert steps[2].batch.slot_mapping.tolist() == [4, 15]


def test_times_count_whole_steps(paged):
    assert toy.token_times(paged, 0.5) == {"A": [0.5, 1, 1.5, 2, 2.5], "B": [1.5, 3.5, 4]}


def test_a_word_outside_the_toy_is_refused():
    assert toy.text(toy.token_ids(["a", "cat"])) == "a cat"
    with pytest.raises(ValueError):
        toy.token_ids(["dog"])


def words_of(diagram, pattern):
    text = (repository() / "book" / "images" / f"{diagram}.svg").read_text()
    return re.findall(pattern, text)


def test_the_diagrams_of_chapters_2_and_4_show_the_toy(paged):
    assert words_of("kv_rows", r">(\d|Σ \d+)<") == [*"34567", "Σ 25", *"31111", "Σ 7"]
    assert words_of("contiguous_slots", r"position 3: row 1 · 12 \+ 3 = (\d+)<") == ["15"]
    step = paged[2]
    formula = r">(\w), position (\d): +block_table\[\2 // 4\] = (\d), .* slot \3 · 4 \+ \d = (\d+)<"
    shown = words_of("block_table", formula)
    slots = dict(zip(step.block_ids, step.batch.slot_mapping.tolist()))
    assert shown == [
        (name, toy.positions(step, name), str(step.block_ids[name][-1]), str(slot))
        for name, slot in slots.items()
    ]
    held = words_of(
        "block_table", r'font-size="13"[^>]*>\d+</text>|font-size="16"[^>]*>(\w+)</text>'
    )
    pool = [word for word in held if word in toy.VOCABULARY]
    assert sorted(pool) == sorted(2 * ("The cat sat on the".split() + "Once upon a time".split()))


def test_a_step_without_a_request_is_refused():
    with pytest.raises(ValueError, match="at least one scheduled request"):
        played(SlotManager(2, 12), {"A": 2})
