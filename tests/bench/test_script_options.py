"""The options of a chapter's script."""

from lib.bench.script_options import options


def test_options_skip_what_belongs_to_others():
    assert options([]).record is None
    jupyter = ["-f", "/run/kernel-1.json", "--HistoryManager.hist_file=:memory:"]
    assert options(jupyter).record is None and options(jupyter).figures is None
    assert str(options(["--record", "a", "-x", "--figures=b"]).record) == "a"
    assert options(["--rec", "a"]).record is None  # no abbreviations: pytest has options of its own
