"""The sentences of chapter 13 that depend on what was measured or simulated.

Every function takes a run (a `Shown`, or a `Run` from disk): `run["name"]` is a Series, or None where it has none.

Introduced in chapter 13.
"""

from typing import Any

from lib.bench.findings.many_machines.fleet_laws import amdahl, queues
from lib.bench.findings.many_machines.fleet_processes import killed, one_model, setups
from lib.bench.findings.many_machines.fleet_routing import first_prediction, policies, steps
from lib.bench.findings.many_machines.fleet_rows import number_of
from lib.bench.findings.many_machines.fleet_simulated import apart, day, rack, thousand
from lib.bench.findings.predictions import Prediction
from lib.bench.findings.values import cell_of, over

__all__ = ["amdahl", "apart", "day", "first_prediction", "killed", "one_model", "policies", "predictions", "queues",
           "rack", "render", "setups", "steps", "thousand"]  # fmt: skip


def predictions(run: Any, parallel: Any = None) -> list[Prediction]:
    """The chapter's predictions, for the table at its end.

    run: the one that the page shows for the router. parallel: the one that it shows for one model in two processes,
    whose gate is another one; None: `run`.
    """
    series = run["policies"]
    two = (run if parallel is None else parallel)["one_model_in_two"]
    found = [
        Prediction(
            "step of one sequence, one model in two processes",
            number_of(two, "step of two, predicted", "seconds"), cell_of(two, "step of two", "seconds"),
            sense="at least",
        )
    ]  # fmt: skip
    for name in ("round_robin", "longest_prefix"):
        words = name.replace("_", " ")
        found += [
            Prediction(
                f"hit rate, {words}, simulated",
                number_of(series, name, "predicted_hit_rate"), number_of(series, name, "hit_rate"), "", "",
            ),
            Prediction(
                f"median TTFT, {words}, simulated with a straight line per step",
                number_of(series, name, "line_ttft"), cell_of(series, name, "ttft"),
            ),
            Prediction(
                f"median TTFT, {words}, simulated with measured steps",
                number_of(series, name, "predicted_ttft"), cell_of(series, name, "ttft"),
            ),
        ]  # fmt: skip
    gain = [
        over(number_of(series, "round_robin", column), number_of(series, "longest_prefix", column))
        for column in ("predicted_ttft", "ttft")
    ]
    found.append(
        Prediction("median TTFT, round robin over longest prefix, simulated", *gain, "", "×")
    )
    return found


def render(run: Any) -> dict[str, str]:
    """Every sentence of the chapter, by the name under which the chapter glues it."""
    measured = (
        setups(run)
        | one_model(run)
        | steps(run)
        | policies(run)
        | first_prediction(run)
        | killed(run)
    )
    simulated = amdahl(run) | queues(run) | thousand(run) | day(run) | apart(run) | rack(run)
    return measured | simulated
