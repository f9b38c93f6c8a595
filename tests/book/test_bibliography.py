"""The bibliography as a reader sees it: alphabetical, without TeX, and no two works under one label."""

import re
from collections import Counter
from pathlib import Path

import pytest
from pybtex.backends.plaintext import Backend
from pybtex.database import Person, parse_file
from pybtex.plugin import find_plugin

from book.tools import bibliography

ROOT = Path(__file__).resolve().parents[2]
BIB = parse_file(str(ROOT / "book" / "references.bib"))


@pytest.fixture(scope="module")
def listed() -> list[str]:
    bibliography.register()
    style = find_plugin("pybtex.style.formatting", "book")()
    entries = style.format_entries(style.sort(BIB.entries.values()))
    return [entry.text.render(Backend()) for entry in entries]


def test_entries_begin_with_the_name_that_sorts_them_and_are_in_order(listed):
    begins = [text.split(",")[0].split(".")[0].lower().removeprefix("the ") for text in listed]
    assert begins == sorted(begins)
    text = "\n".join(listed)
    assert re.search(r"^Vaswani, Ashish; Shazeer, Noam", text, re.M)
    assert text.index("vLLM Team") > text.index("Vaswani, Ashish")


def test_authors_that_are_left_out_are_et_al(listed):
    assert not [text for text in listed if "others" in text.split(".")[0]]
    assert any("; et al. PyTorch 2" in text for text in listed)


def test_no_raw_tex_is_left(listed):
    assert not [text for text in listed if re.search(r"[\\{}$]|``|''| -- ", text)]


def test_no_two_works_have_one_author_year_label():
    def label(entry) -> str:
        people: list[Person] = entry.persons["author"]
        names = [" ".join(person.last_names) for person in people[: 1 if len(people) > 2 else 2]]
        return (
            f"{' and '.join(names)}{' et al.' if len(people) > 2 else ''}, {entry.fields['year']}"
        )

    labels = Counter(label(entry) for entry in BIB.entries.values())
    assert not [name for name, count in labels.items() if count > 1]


def test_the_repeated_source_names_its_commit():
    entry = BIB.entries["achi9629engine"]
    assert re.search(r"/tree/[0-9a-f]{40}$", entry.fields["url"]) and entry.fields["year"].isdigit()
