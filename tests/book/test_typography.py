"""What the book changes of its pages for the eye: options, links' spaces, the appendix' numbers, the executed pages."""

import re
import subprocess
import sys
from pathlib import Path

from book.tools.typography import appendix_letters, renumbered, set_for_the_eye

ROOT = Path(__file__).resolve().parents[2]


def test_options_are_marked_and_other_words_are_not():
    def code(word, kind="pre"):
        return f'<code><span class="{kind}">{word}</span></code>'

    for option in ("--url", "-m", "--data-parallel-size=2", "ARGS=&quot;--model", "ARGS=--force"):
        assert set_for_the_eye(code(option)) == code(option, "pre option")
    for word in ("-1", "--", "url", "a--b", "-1.5", "ARGS=4"):
        assert set_for_the_eye(code(word)) == code(word)


def test_the_space_before_a_solutions_link_is_outside_of_it():
    def title(text):
        return f'<p class="admonition-title">{text}</p><p><a href="#b"> kept</a></p>'

    solution = title('Solution to<a class="x" href="#a"> Exercise 1.1 (Predict)</a>')
    assert set_for_the_eye(solution) == title(
        'Solution to <a class="x" href="#a">Exercise 1.1 (Predict)</a>'
    )


def test_numbers_of_the_appendix_have_a_letter():
    numbers = {
        "index": {"figure": {"f": (1,)}},
        "chapters/01_a": {"figure": {"g": (1, 1)}, "exercise": {"e": (1, 1)}},
        "chapters/14_b": {"figure": {"h": (2,)}, "exercise": {"x": (1,), "y": (2,)}},
        "chapters/15_c": {"figure": {"i": (3,)}},
        "library": {"figure": {"j": (4,)}},
    }
    letters = appendix_letters(list(numbers), {"chapters/01_a": {"": (1,)}})
    assert letters == {"chapters/14_b": "A", "chapters/15_c": "B"}
    found = renumbered(numbers, letters)
    assert found["chapters/14_b"] == {
        "figure": {"h": ("A", 1)}, "exercise": {"x": ("A", 1), "y": ("A", 2)}
    }  # fmt: skip
    assert found["chapters/15_c"]["figure"] == {"i": ("B", 1)}
    assert found["library"]["figure"] == {"j": (2,)} and found["index"] == numbers["index"]
    assert found["chapters/01_a"] == numbers["chapters/01_a"]


BOOK = {
    "conf.py": f"""import sys
sys.path.insert(0, {str(ROOT)!r})
extensions = ['myst_nb', 'sphinx_design', 'sphinx_exercise', 'book.tools.book_ext']
myst_enable_extensions = ['dollarmath', 'colon_fence']
numfig = True
numfig_secnum_depth = 1
math_numfig = True
math_eqref_format = 'equation {{number}}'
nb_execution_mode = 'force'
""",
    "index.md": "# Book\n\n```{toctree}\n:numbered:\nchapters/01_a\n```\n\n```{toctree}\nchapters/14_b\nruns\n```\n",
    "chapters/01_a.md": "# First\n\nSee {numref}`fig-x`, {eq}`eq-x` and {ref}`ex-x`.\n\n$$ a $$ (eq-a)\n",
    "chapters/14_b.md": """---
file_format: mystnb
kernelspec: {name: python3}
---
# A port

```{figure} p.png
:name: fig-x

A picture.
```

$$ b $$ (eq-x)

:::{exercise} Predict
:label: ex-x
Why?
:::

```{solution} ex-x
It is `--so`.
```

```{code-cell}
1
```
""",
    "runs.md": "# Runs\n\n```{nb-exec-table}\n```\n",
}


def test_a_book_with_an_appendix_builds_without_warnings(tmp_path):
    source, out = tmp_path / "book", tmp_path / "out"
    for name, text in BOOK.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (source / "chapters/p.png").write_bytes((ROOT / "book/_static/social_card.png").read_bytes())
    for _ in range(2):  # the second time, Sphinx reads its own numbers
        done = subprocess.run([sys.executable, "-m", "sphinx", "-W", "-q", str(source), str(out)],
                              capture_output=True, text=True, timeout=120)  # fmt: skip
        assert done.returncode == 0, done.stderr
        (source / "index.md").write_text(BOOK["index.md"] + "\nMore.\n")
    first, port = (out / f"chapters/{name}.html" for name in ("01_a", "14_b"))
    text = port.read_text()
    assert ">Fig. A.1 <" in text and ">(A.1)<" in text and ">Exercise A.1 <" in text
    assert 'Solution to <a class="reference internal" href="#ex-x">Exercise A.1' in text
    assert '<span class="pre option">--so</span>' in text
    assert all(name in first.read_text() for name in ("Fig. A.1", "equation A.1", "Exercise A.1"))
    runs = (out / "runs.html").read_text()
    assert re.search(r'<td class="[^"]*number[^"]*"><p>\d+</p>', runs), "whole seconds"
    assert ">A port</span>" in runs and "<p>ok</p>" in runs and "chapters/14_b</" not in runs
