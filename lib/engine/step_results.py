"""From a step's logits to each request's new tokens. Introduced in chapter 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lib.core.batch import Scheduled
from lib.engine.chosen_tokens import ChosenTokens
from lib.engine.completion_stream import CompletionStream, Progress
from lib.engine.row_groups import Row
from lib.engine.sampling_row import PromptRow, SamplingRow


@dataclass(frozen=True)
class Step:
    """A step that has been launched: what it computes, and the tokens that it chooses."""

    scheduled: list[Scheduled]
    chosen: ChosenTokens

    @property
    def num_tokens(self) -> int:
        """Tokens computed, without those that are discarded."""
        return sum(item.num_tokens for item in self.scheduled if not item.discarded)


def rows_to_sample(scheduled: Sequence[Scheduled]) -> list[Row]:
    """What the sampler must know of each of a step's N rows of logits.

    First those of the tokens of a prompt whose log-probabilities are asked for. A request whose
    tokens are all computed after this step has then one per draft, and one more. One in the middle
    of its prompt has one row at least; without `prompt_logprobs` only its finiteness matters.
    """
    rows: list[Row] = []
    for item in scheduled:
        if item.discarded:
            rows += [None] * item.num_rows
            continue
        if item.num_prompt_rows:
            first = len(item.request.prompt_logprobs)
            rows += [PromptRow(item.request, first + n) for n in range(item.num_prompt_rows)]
        if not item.completes:
            if not item.num_prompt_rows:
                rows.append(None)
        elif not item.draft_token_ids:
            rows.append(item.request)
        else:
            rows += _rows_with_drafts(item)
    return rows


def _rows_with_drafts(item: Scheduled) -> list[SamplingRow]:
    drafts = tuple(item.draft_token_ids)
    rows = [SamplingRow(item.request, drafts[:n]) for n in range(1 + len(drafts))]
    if item.draft_probs is not None:
        for n, draft in enumerate(drafts):
            rows[n] = SamplingRow(item.request, drafts[:n], draft, item.draft_probs[n])
    return rows


def results_of(
    scheduled: Sequence[Scheduled], chosen: ChosenTokens, streams: Sequence[CompletionStream]
) -> list[Progress]:
    """What a step's tokens mean for the requests that get tokens or fail. Changes nothing."""
    token_ids, logprobs = chosen.read()
    progress, start = [], 0
    for item, stream in zip(scheduled, streams):
        end = start + item.num_rows
        if item.discarded:
            start = end
            continue
        first = start + item.num_prompt_rows
        prompt, sampled = logprobs[start:first], token_ids[first:end]
        finite = None not in sampled
        if None in token_ids[start:first]:
            progress.append(stream.progress([None], [None], finite=False))
        elif prompt and not item.completes:
            progress.append(stream.progress([], [], prompt_logprobs=prompt))
        elif item.completes:
            num_tokens = _num_accepted(sampled, item.draft_token_ids) + 1
            progress.append(
                stream.progress(
                    sampled[:num_tokens],
                    logprobs[first : first + num_tokens],
                    len(item.draft_token_ids),
                    finite=finite,
                    prompt_logprobs=prompt,
                )
            )
        elif not finite:
            progress.append(stream.progress([None], [None], finite=False))
        start = end
    return progress


def _num_accepted(sampled: Sequence[int | None], drafts: Sequence[int]) -> int:
    """Drafts that are what the model itself has sampled there, up to the first that is not."""
    accepted = 0
    while accepted < len(drafts) and sampled[accepted] == drafts[accepted]:
        accepted += 1
    return accepted
