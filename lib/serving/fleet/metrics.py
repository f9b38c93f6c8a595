"""The replicas' Prometheus metrics as one text, told apart by a label. Introduced in chapter 13."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (.+)$")


def labelled(texts: Mapping[str, str]) -> str:
    """One exposition from several, by replica: each sample gets the label `replica`; HELP and TYPE come once per metric."""
    families: dict[str, tuple[list[str], list[str]]] = {}  # by metric: (comments, samples)
    for replica, text in texts.items():
        name = replica.replace("\\", r"\\").replace('"', r"\"")
        family, seen = families.setdefault("", ([], [])), ""
        for line in text.splitlines():
            if line.startswith("# "):
                _, kind, metric, *_ = line.split(" ", 3)
                new = metric not in families
                family = families.setdefault(metric, ([], []))
                seen = metric if new or seen == metric else ""
                if seen and line not in family[0]:
                    family[0].append(line)
            elif match := _SAMPLE.match(line):
                metric, labels, value = match.groups()
                inside = f'replica="{name}"' + (f",{labels}" if labels else "")
                family[1].append(f"{metric}{{{inside}}} {value}")
    lines = [line for comments, samples in families.values() for line in (*comments, *samples)]
    return "".join(f"{line}\n" for line in lines)
