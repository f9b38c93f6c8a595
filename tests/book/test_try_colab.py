"""The trial of the chapters with Colab's versions: what it moves, and that these versions are in the book's ranges."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from book.tools import try_colab
from book.tools.notebooks import setup_cell

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}


@pytest.mark.parametrize("name", try_colab.VERSIONS)
def test_the_engine_needs_the_package_and_takes_colab_s_version(name):
    assert try_colab.VERSIONS[name] in NEEDED[canonicalize_name(name)].specifier


def test_what_colab_lacks_is_installed_by_the_cell():
    absent = set(NEEDED) - {canonicalize_name(name) for name in try_colab.VERSIONS}
    assert absent == {"gguf", "triton"}, "triton comes with torch"


def test_the_cell_takes_this_working_tree_and_writes_below_the_folder(tmp_path):
    cell = try_colab.moved(setup_cell(), tmp_path)
    assert repr(str(ROOT)) in cell and f'Path("{tmp_path}/content/' in cell
    assert "https://" not in cell and '"/content' not in cell
    compile(cell, "cell", "exec")


def test_a_command_that_fails_brings_its_output(tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        try_colab.run([sys.executable, "-c", "print('why'); raise SystemExit(3)"], tmp_path)
    assert caught.value.returncode == 3 and "why" in caught.value.output


def test_a_package_of_another_version_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(try_colab, "VERSIONS", {"numpy": "0.1", "no-such-package": "2"})
    first, second = try_colab.changed(Path(sys.executable), tmp_path)
    assert first.startswith("numpy 0.1 became ") and second == "no-such-package 2 became None"


def test_chapters_that_do_not_exist_are_refused(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["try_colab.py", "--only", "99"])
    with pytest.raises(SystemExit):
        try_colab.main()
    assert "--only must name chapters, got '99'" in capsys.readouterr().err
