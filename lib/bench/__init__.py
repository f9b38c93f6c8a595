"""Measuring: what this machine can do, what a piece of code did, and how far apart the two are.

`lib.bench.peers` (transformers), `lib.bench.record` (the command) and later chapters' modules are imported by name.

Introduced in chapter 1.
"""
from lib.bench import counts, figures
from lib.bench.figures import (
    bars,
    bound,
    figure,
    lines,
    log2_axis,
    log10_axis,
    percent_axis,
    recorded_lines,
    show,
    stacked_bars,
    table,
)  # fmt: skip
from lib.bench.fingerprint import fingerprint, hardware
from lib.bench.memory import PeakMemory, UtilisationSampler, peak_memory
from lib.bench.notebook import glue, in_notebook, repository_url, show_source, sweep
from lib.bench.profiler import Profile, profile
from lib.bench.records import Record
from lib.bench.roofline import Roofline, measure_roofline, tf32
from lib.bench.scale import pick, scale
from lib.bench.stored import load_records, reference
from lib.bench.timing import Timing, measure, timed

__all__ = [
    "PeakMemory", "Profile", "Record", "Roofline", "Timing", "UtilisationSampler", "bars", "bound", "counts", "figure",
    "figures", "fingerprint", "glue", "hardware", "in_notebook", "lines", "load_records", "log10_axis", "log2_axis",
    "measure", "measure_roofline", "peak_memory", "percent_axis", "pick", "profile", "recorded_lines", "reference",
    "repository_url", "scale", "show", "show_source", "stacked_bars", "sweep", "table", "tf32", "timed",
]  # fmt: skip
