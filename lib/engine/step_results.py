"""From a step's logits to each request's new tokens. Introduced in chapter 1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lib.core.batch import Scheduled
from lib.engine.completion_stream import CompletionStream, Progress
from lib.engine.sampling import is_finite, sample
from lib.engine.sampling_row import SamplingRow


def step_results(
    scheduled: Sequence[Scheduled], logits: Tensor, streams: Sequence[CompletionStream]
) -> list[Progress]:
    """What the logits [N, V] mean for the requests that get tokens or fail. Changes nothing.

    A request whose tokens are all computed after this step has `num_rows` rows: one per draft, and
    one more. One in the middle of its prompt has one row, and only its finiteness matters.
    """
    first, complete, partial = 0, [], []  # (place in `scheduled`, its first row)
    for place, item in enumerate(scheduled):
        (complete if item.completes else partial).append((place, first))
        first += item.num_rows
    progress = []
    if complete:
        rows = [
            SamplingRow(item.request, tuple(item.draft_token_ids[:n]))
            for item in (scheduled[place] for place, _ in complete)
            for n in range(item.num_rows)
        ]
        if partial:
            kept = [first + n for i, first in complete for n in range(scheduled[i].num_rows)]
            logits_of_rows = logits[kept]
        else:
            logits_of_rows = logits
        token_ids, logprobs = sample(logits_of_rows, rows)
        start = 0
        for place, _ in complete:
            item = scheduled[place]
            end = start + item.num_rows
            sampled = token_ids[start:end]
            num_tokens = _num_accepted(sampled, item.draft_token_ids) + 1
            progress.append(
                streams[place].progress(
                    sampled[:num_tokens],
                    logprobs[start : start + num_tokens],
                    len(item.draft_token_ids),
                    finite=None not in sampled,
                )
            )
            start = end
    if partial:
        ok = is_finite(logits[[row for _, row in partial]])
        progress += [
            streams[place].progress([None], [None], finite=False)
            for (place, _), good in zip(partial, ok)
            if not good
        ]
    return progress


def _num_accepted(sampled: Sequence[int | None], drafts: Sequence[int]) -> int:
    """Drafts that are what the model itself has sampled there; after the first other one none counts."""
    accepted = 0
    while accepted < len(drafts) and sampled[accepted] == drafts[accepted]:
        accepted += 1
    return accepted
