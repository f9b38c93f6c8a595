"""Packing for a machine without a network: what is chosen, and that the parts install as they were packed."""

import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from lib.bench.paths import repository


@pytest.fixture(scope="module")
def tool():
    path = repository() / "book/tools/pack_offline.py"
    spec = importlib.util.spec_from_file_location("pack_offline", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_wheel(folder: Path, name: str, content: bytes) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")  # fmt: skip
        wheel.writestr(f"{info}/RECORD", "")
    return path


def install(out: Path, target: Path):
    return subprocess.run(
        ["sh", str(out / "install.sh"), str(target)],
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


def test_what_is_needed_follows_dependencies_and_leaves_out_what_is_there(tool):
    text = "fastapi>=0.1  # server\nplaywright\ntorch\n-e .\nnumpy"
    names = {pin.split("==")[0] for pin in tool.needed(text, set())}
    assert {"fastapi", "starlette", "pydantic", "pydantic-core", "numpy"} <= names
    assert not names & {"playwright", "torch"}
    fewer = {pin.split("==")[0] for pin in tool.needed(text, {"numpy", "pydantic"})}
    assert {"fastapi", "starlette"} <= fewer and not fewer & {"numpy", "pydantic", "pydantic-core"}
    with pytest.raises(RuntimeError, match="no-such-package is not installed here"):
        tool.needed("no-such-package", set())


def test_the_requirements_of_now(tool):
    """What lib and the tests import is packed, and nothing that builds the book."""
    pins = tool.needed((repository() / "requirements.txt").read_text(), set())
    names = {pin.split("==")[0] for pin in pins}
    project = tomllib.loads((repository() / "pyproject.toml").read_text())["project"]
    imported = {Requirement(text).name for text in project["dependencies"]} - {"torch", "triton"}
    assert imported | {"llguidance", "pytest", "hypothesis", "pytest-timeout"} <= names
    assert not {name for name in names if "sphinx" in name or "jupyter" in name}


def test_names_from_the_outputs_of_pip(tool):
    table = "Package    Version\n---------- -------\nnumpy      2.0\nPydantic_Core 2.1\n"
    assert {"numpy", "pydantic-core"} <= tool.installed_names(table)
    assert tool.installed_names("numpy==2.0\ntyping_extensions==4\n") == {"numpy", "typing-extensions"}  # fmt: skip
    assert tool.installed_names("absl-py, jinja2, uvloop.") == {"absl-py", "jinja2", "uvloop"}


def test_parts_install_whole_and_a_damaged_one_is_refused(tool, tmp_path):
    noise = bytes(range(48, 122)) * 400
    wheels = [make_wheel(tmp_path, "one", b"x = '''" + noise.replace(b"\\", b"/").replace(b"'", b" ") + b"'''"), make_wheel(tmp_path, "two", b"y = 2")]  # fmt: skip
    out = tmp_path / "out"
    parts = tool.pack(wheels, out, part_bytes=10_000)
    assert len(parts) > 2 and all(part.stat().st_size <= 10_000 for part in parts)
    done = install(out, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/one.py").is_file() and (tmp_path / "site/two.py").is_file()
    parts[1].write_bytes(b"damaged")
    assert install(out, tmp_path / "site2").returncode != 0
    assert not (tmp_path / "site2").exists()
    again = tool.pack(wheels[1:], out, part_bytes=10_000_000)
    assert sorted(out.glob("wheels.tar.*")) == again  # no part of the earlier run is left
    with pytest.raises(ValueError, match="no wheels"):
        tool.pack([], out)
