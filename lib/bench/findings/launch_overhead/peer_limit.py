"""How many times transformers' rate any engine of this precision could reach on this machine, by its ceilings.

Introduced in chapter 8.
"""

from __future__ import annotations

from typing import Any

from lib.bench.findings.launch_overhead.overhead_rows import STEPS, last_batch
from lib.bench.findings.launch_overhead.overhead_whole_way import rates
from lib.bench.findings.values import cell, positive, quantity, times
from lib.bench.findings.vocabulary import missing


def limit(run: Any) -> float | None:
    """Output tokens per second of the waterfall's largest batch if all steps, prompts included, took their bound.

    The prompt's bound is the one of the prompt that was measured alone, in proportion to the tokens.
    """
    way, prompt = run["waterfall"], run["prefill"]
    if way is None or prompt is None or not {"prompt", "new_tokens"} <= way.params.keys():
        return None
    arithmetic, step = positive(cell(prompt, "flops", 0)), positive(cell(run[STEPS], "bound", -1))
    length = prompt.params.get("prompt")
    if not arithmetic or not step or not length or min(arithmetic, step) < 0:
        return None
    batch, new = way["batch"][-1], way.params["new_tokens"]
    prompts = batch * way.params["prompt"] * arithmetic / length
    return batch * new / (prompts + (new - 1) * step)


def peer_limit(run: Any) -> dict[str, str]:
    """The sentence `peer_limit_finding`."""
    most, found = limit(run), rates(run)["last"]
    theirs = positive(found.get("transformers"))
    ours = [m for name, v in found.items() if name != "transformers" and (m := positive(v))]
    if not most or not theirs or theirs < 0 or not ours:
        return {"peer_limit_finding": missing("the limit at the largest batch").sentence}
    said = (
        f"At {last_batch(run['waterfall'])}, if every step took its bound, this work would run at "
        f"{quantity(most, 'tokens/s')}, {times(most / theirs)} transformers' rate. "
    )
    best = f"{quantity(max(ours), 'tokens/s')}, {times(max(ours) / theirs)}"
    if max(ours) > 1.1 * most:
        said += f"Ours reached {best}. So a ceiling was measured too low, and this limit is none."
    elif max(ours) > most:
        said += (
            f"Ours reached {best}. So a ceiling was measured a little too low, and no engine that computes in this "
            "precision can be much faster here."
        )
    else:
        said += (
            "By these ceilings no engine that computes in this precision can be faster here; "
            f"ours reached {best}."
        )
    return {"peer_limit_finding": said}
