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


def shown_as_html(monkeypatch, *arguments) -> str:
    shown = []
    monkeypatch.setattr(tables, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", shown.append)
    table(*arguments)
    return shown[0].data


@pytest.mark.parametrize(
    "cell, html",
    [
        ("-3.5", "−3.5"),
        ("1.5 (-2)", "1.5 (−2)"),
        ("OpenVINO's rate", "OpenVINO’s rate"),
        ("the engines' rates", "the engines’ rates"),
        ("int-8, 1e-3", "int-8, 1e-3"),
        ("x[-1]", "x[-1]"),
        ("'it's -1'", "&#x27;it&#x27;s -1&#x27;"),
        ("-?(0|1)", "-?(0|1)"),
    ],
)
def test_minus_and_apostrophe_in_html(monkeypatch, cell, html):
    assert f">{html}</td>" in shown_as_html(monkeypatch, [[cell]], ["a"])


def test_columns_of_predictions_are_aligned_alike_whether_words_stand_in_them_or_not(monkeypatch):
    for measured in ("3 %", "rises"):
        html = shown_as_html(monkeypatch, [["a", measured]], ["claim", "measured"], "predictions")
        assert "text-align:right" not in html


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
