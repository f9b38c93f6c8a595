"""The replicas' Prometheus metrics as one text, told apart by a label. Introduced in chapter 13."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (.+)$")


def labelled(texts: Mapping[str, str]) -> str:
    """One text from several, by replica: each sample gets the label `replica`, and the lines of a metric stay together."""
    families: dict[str, tuple[list[str], list[str]]] = {}  # by metric: (comments, samples)
    for replica, text in texts.items():
        name = replica.replace("\\", r"\\").replace('"', r"\"")
        family = families.setdefault("", ([], []))
        for line in text.splitlines():
            # "# HELP metric …" and "# TYPE metric …" come before the samples.
            if line.startswith(("# HELP ", "# TYPE ")):
                family = families.setdefault(line.split(" ", 3)[2], ([], []))
                if line not in family[0]:
                    family[0].append(line)
            elif match := _SAMPLE.match(line):
                metric, labels, value = match.groups()
                inside = f'replica="{name}"' + (f",{labels}" if labels else "")
                family[1].append(f"{metric}{{{inside}}} {value}")
    lines = [line for comments, samples in families.values() for line in (*comments, *samples)]
    return "".join(f"{line}\n" for line in lines)
