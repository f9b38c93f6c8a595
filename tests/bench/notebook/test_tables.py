"""Tables as text and as HTML."""

import pytest

from lib.bench.notebook import tables
from lib.bench.notebook.figures import table
from lib.bench.notebook.tables import unbroken


def test_table_as_text_and_as_html(capsys, monkeypatch):
    table([["gpt2", "124.4"], ["smollm2", "-"]], ["model", "M"])
    assert capsys.readouterr().out.splitlines() == [
        "model        M",
        "-------  -----",
        "gpt2     124.4",
        "smollm2      -",
    ]
    with pytest.raises(ValueError, match="row 0 has 1 cells"):
        table([["x"]], ["a", "b"])
    shown = []
    monkeypatch.setattr(tables, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", shown.append)
    table([["<b>", 1]], ["a", "b"])
    assert (
        "&lt;b&gt;" in shown[0].data
        and 'style="text-align:right" data-header="b">1<' in shown[0].data
    )
    table([["at most 2 ×, 16 % of 3 ms"], ["5 sequences, 3 steps"]], ["number and unit"])
    assert "at most 2\u00a0×, 16\u00a0% of 3\u00a0ms" in shown[1].data
    assert "5 sequences, 3 steps" in shown[1].data
    table([["86%", "4.25%, 90.0%", "a 5% and `x%`"]], ["share", "both", "text"])
    assert ">86\u00a0%<" in shown[2].data and ">4.25\u00a0%, 90.0\u00a0%<" in shown[2].data
    assert ">a 5% and `x%`<" in shown[2].data, "a cell with other text is as it was"


def test_a_column_of_percentages_has_one_form_and_is_aligned_as_numbers(capsys):
    table([["a", "6%"], ["b", "86 %"], ["c", "-"]], ["name", "share"])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "a           6 %",
        "b          86 %",
        "c             -",
    ]


def test_no_line_breaks_between_a_number_and_its_unit():
    for unit in (
        "%",
        "×",
        "ms",
        "µs",
        "s",
        "min",
        "h",
        "kB",
        "GiB",
        "GB/s",
        "GFLOP/s",
        "FLOPs",
        "tokens/s",
        "tok/s",
    ):
        assert unbroken(f"in 1.5 {unit}, 12\n{unit}.") == f"in 1.5\u00a0{unit}, 12\u00a0{unit}."
    for text in ("3 steps", "5 sequences", "2 hours", "batch 8 has", "a s", "3 KB"):
        assert unbroken(text) == text
