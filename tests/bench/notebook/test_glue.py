"""Source on the page, and notebook helpers in a script."""

import pytest

from lib.bench.notebook import glue as notebook
from lib.models.compiled import compile_blocks


class _Toy:
    """A toy."""

    def one(self):
        return 1

    @property
    def two(self):
        return 2


def test_source_is_the_real_one():
    assert notebook.source(_Toy).startswith('class _Toy:\n    """A toy."""')
    assert notebook.source(_Toy, "two", "one") == (
        "class _Toy:\n\n    @property\n    def two(self):\n        return 2\n\n    def one(self):\n        return 1\n"
    )
    with pytest.raises(ValueError, match="_Toy defines no 'three'; it defines one, two"):
        notebook.source(_Toy, "three")


def test_helpers_are_silent_in_a_script(capfd):
    notebook.glue("x", 1.234, ".1f")
    notebook.show_source(_Toy)
    assert list(notebook.sweep(range(3), "n")) == [0, 1, 2] and capfd.readouterr() == ("", "")


def test_repository_url(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "repository", lambda: tmp_path)
    assert notebook.repository_url() is None
    (tmp_path / "_config.yml").write_text(
        "title: x\nhtml:\n  url: no\nrepository:\n  # the one place\n  path_to_book: .\n  url: https://example.org/a/b/\n"
    )
    assert notebook.repository_url() == "https://example.org/a/b"


def test_a_decorated_function_is_labelled_with_its_own_file(monkeypatch):
    shown = []
    monkeypatch.setattr(notebook, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda text: shown.append(text.data))
    notebook.show_source(compile_blocks)  # torch.inference_mode wraps it in a function of PyTorch
    assert shown[0].startswith("[`lib/models/compiled.py`]("), shown[0].splitlines()[0]
