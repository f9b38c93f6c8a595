"""Tables as text and as HTML."""

import pytest

from lib.bench.notebook import tables
from lib.bench.notebook.figures import table


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
