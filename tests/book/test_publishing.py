"""What the published book has besides its pages: links, sitemap, previews, workflows, citation, issue templates."""

import re
import struct
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from book.tools import check_links, publishing, social_card
from book.tools.notebooks import pages_url, repository_url

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"


def page(folder, name, body):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<html><body>{body}</body></html>")


def test_a_link_to_no_file_and_one_to_no_anchor_are_found(tmp_path):
    page(tmp_path, "book/index.html", '<h1 id="top">A</h1><a href="#top">1</a><a href="#no">2</a>'
         '<a href="../chapters/a.html#one">3</a><a href="../chapters/b.html">4</a>'
         '<a href="../chapters/a.html#two">5</a><a href="https://example.org/x">6</a><a href="mailto:a@b">7</a>')  # fmt: skip
    page(tmp_path, "chapters/a.html", '<p id="one"></p><a href="../book/">8</a>')
    assert check_links.broken_links(tmp_path) == [
        "book/index.html: #no: no such anchor",
        "book/index.html: ../chapters/b.html: no such file",
        "book/index.html: ../chapters/a.html#two: no such anchor",
    ]


def test_without_pages_the_link_check_does_not_pass(tmp_path):
    with pytest.raises(FileNotFoundError, match="no .html file"):
        check_links.broken_links(tmp_path)


@pytest.mark.parametrize(
    "found, address",
    [
        ("https://a.org/x).", "https://a.org/x"),
        ("https://a.org/x_(y)", "https://a.org/x_(y)"),
        ("https://a.org/x,", "https://a.org/x"),
        ("https://a.org/x]", "https://a.org/x"),
    ],
)
def test_an_address_ends_before_its_sentence_does(found, address):
    assert check_links.trimmed(found) == address


def test_external_addresses_are_those_of_the_sources(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "references.bib").write_text("url = {https://arxiv.org/abs/1}\n")
    (tmp_path / "README.md").write_text(
        "See [x](https://a.org/b), http://127.0.0.1:8000 and https://a.org/b.\n"
    )
    found = check_links.external_addresses(tmp_path)
    assert found == {
        "https://a.org/b": ["README.md", "README.md"],
        "https://arxiv.org/abs/1": ["book/references.bib"],
    }


def test_an_address_that_does_not_answer_is_named_with_its_files(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("https://a.org/b https://a.org/c\n")
    answers = {"https://a.org/b": None, "https://a.org/c": "status 404"}
    monkeypatch.setattr(check_links, "problem", answers.get)
    assert check_links.broken_addresses(tmp_path) == ["https://a.org/c: status 404 (README.md)"]


@pytest.mark.parametrize(
    "repository, pages",
    [
        ("https://github.com/Owner/book", "https://owner.github.io/book/"),
        ("https://github.com/owner/owner.github.io", "https://owner.github.io/"),
    ],
)
def test_the_published_address_follows_from_the_repository(repository, pages):
    assert pages_url(repository) == pages


def test_another_host_has_no_pages_address():
    with pytest.raises(ValueError, match="repository.url must be https://github.com/OWNER/NAME"):
        pages_url("https://example.org/owner/book")


def test_the_sitemap_lists_each_page_once():
    text = publishing.sitemap("https://o.github.io/b/", ["chapters/02_b", "book/index"])
    locations = [
        node.text
        for node in ET.fromstring(text.split("\n", 1)[1]).iter()
        if node.text and node.text.strip()
    ]
    assert locations == [
        "https://o.github.io/b/book/index.html",
        "https://o.github.io/b/chapters/02_b.html",
    ]


def test_the_preview_has_whole_addresses_and_escapes_its_title():
    tags = publishing.preview("https://o.github.io/b/", "chapters/02_b", 'Keys & "values"')
    found = dict(re.findall(r'property="([^"]+)" content="([^"]*)"', tags))
    assert found["og:title"] == "Keys &amp; &quot;values&quot;"
    assert found["og:url"] == "https://o.github.io/b/chapters/02_b.html"
    assert found["og:image"] == "https://o.github.io/b/_static/social_card.png"


def test_the_card_has_the_size_that_the_preview_says():
    width, height = struct.unpack(">II", social_card.PATH.read_bytes()[16:24])
    assert (width, height) == (social_card.WIDTH, social_card.HEIGHT) == (1200, 630)


def test_the_page_for_wrong_addresses_loads_nothing_and_links_whole_addresses():
    text = publishing.NOT_FOUND.format(title="T", base="https://o.github.io/b/")
    targets = re.findall(r'href="([^"]+)"', text)
    assert targets and all(target.startswith("https://o.github.io/b/") for target in targets)
    assert "src=" not in text


@pytest.mark.parametrize("path", sorted(GITHUB.glob("workflows/*.yml")), ids=lambda p: p.stem)
def test_a_workflow_runs_what_the_repository_has(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["name"] and workflow["permissions"] and workflow[True]  # "on" is true in YAML
    makefile, used = (ROOT / "Makefile").read_text(), []
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@v\d+", step.get("uses", "a/b@v1"))
            used += step.get("run", "").splitlines()
    for line in used:
        for target in re.findall(r"^make (\w+)", line):
            assert re.search(rf"^{target}:", makefile, re.M), line
        for file in re.findall(r"(?:^|\s)((?:book|\.ci)/[\w./]+)", line):
            assert (ROOT / file).is_file(), line


def test_the_citation_has_what_the_format_demands():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["repository-code"] == repository_url()
    assert citation["url"] == pages_url(repository_url())
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M).group(1)
    assert citation["version"] == version


@pytest.mark.parametrize(
    "path",
    sorted(p for p in GITHUB.glob("ISSUE_TEMPLATE/*.yml") if p.stem != "config"),
    ids=lambda p: p.stem,
)
def test_an_issue_template_has_a_name_and_fields(path):
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids) > 0
    assert all(field["attributes"]["label"] for field in form["body"])
