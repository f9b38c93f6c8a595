"""Runs chapters with the versions that Colab has published: `python book/tools/try_colab.py --python python3.13`.

Makes an environment with VERSIONS and a module google.colab, runs the chapters' first cell in it with the last commit of
this working tree in place of the repository, prints what the cell changed, and then runs chapters as scripts at smoke
scale. What differs from Colab: its other packages are absent, and there is no GPU. Needs a package index and a few GB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from book.tools.notebooks import repository_url, setup_cell  # noqa: E402

# From https://github.com/googlecolab/backend-info, pip-freeze.gpu.txt: the packages that the engine needs.
PUBLISHED, PYTHON = "2026-08-19", "3.13"
VERSIONS = {
    "torch": "2.11.0",
    "transformers": "5.15.0",
    "tokenizers": "0.22.2",
    "accelerate": "1.14.0",
    "safetensors": "0.8.0",
    "huggingface_hub": "1.27.0",
    "filelock": "3.32.3",
    "numpy": "2.1.3",
    "numba": "0.61.2",
    "psutil": "5.9.5",
    "nvidia-ml-py": "13.610.43",
    "matplotlib": "3.10.0",
    "tqdm": "4.67.3",
    "tabulate": "0.9.0",
    "fastapi": "0.141.1",
    "uvicorn": "0.52.3",
    "prometheus_client": "0.26.0",
    "httpx": "0.28.1",
    "openai": "2.54.0",
    "Jinja2": "3.1.6",
}
_INSTALLED = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try: found[name] = version(name).split("+")[0]
    except PackageNotFoundError: found[name] = None
print(json.dumps(found))
"""


def moved(text: str, folder: Path) -> str:
    """A chapter, or its first cell, with this working tree as the repository and `folder` as Colab's /content."""
    return text.replace(f'"{repository_url()}"', repr(str(ROOT))).replace(
        "/content/", f"{folder}/content/"
    )


def environment(folder: Path, interpreter: str) -> Path:
    """The environment's Python; made where `folder` has none."""
    python = folder / "venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([interpreter, "-m", "venv", str(folder / "venv")], check=True)
    wanted = [f"{name}=={version}" for name, version in VERSIONS.items()]
    run([str(python), "-m", "pip", "install", "-q", *wanted], folder)
    place = run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder
    )
    colab = Path(place) / "google" / "colab"
    colab.mkdir(parents=True, exist_ok=True)
    (colab / "__init__.py").touch()
    # The environment is kept for the next trial, the repository is cloned anew.
    shutil.rmtree(folder / "content", ignore_errors=True)
    (folder / "content").mkdir()
    return python


def changed(python: Path, folder: Path) -> list[str]:
    """Packages that have another version than Colab's, with both; empty where all were kept."""
    found = json.loads(run([str(python), "-c", _INSTALLED, *VERSIONS], folder))
    return [f"{n} {v} became {found[n]}" for n, v in VERSIONS.items() if found[n] != v]


def run(command: list[str], cwd: Path) -> str:
    """What a command prints. Raises subprocess.CalledProcessError with its output."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    settings = {k: v for k, v in os.environ.items() if k not in hidden} | {"BOOK_SCALE": "smoke"}
    done = subprocess.run(
        command, cwd=cwd, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout)
    return done.stdout.strip()


def try_chapter(python: Path, path: Path, folder: Path) -> bool:
    """Run one chapter of the clone; prints what came of it."""
    script = folder / "content" / path.name
    script.write_text(moved(path.read_text(), folder))
    began = time.monotonic()
    try:
        run([str(python), str(script)], folder)
    except subprocess.CalledProcessError as error:
        print(f"{path.stem}: FAILED\n{error.output[-3000:]}", flush=True)
        return False
    print(f"{path.stem}: ran in {time.monotonic() - began:.0f} s", flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help=f"Colab has Python {PYTHON}")
    parser.add_argument("--only", default="", help="chapters, such as 01,07; default: all")
    parser.add_argument("--folder", type=Path, help="keep the environment here, and reuse it")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else [""]
    chapters = [
        path
        for path in sorted((ROOT / "chapters").glob("[0-9]*.py"))
        if any(path.name.startswith(name) for name in wanted)
    ]
    if not chapters:
        parser.error(f"--only must name chapters, got {options.only!r}")
    with tempfile.TemporaryDirectory(prefix="colab-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        python = environment(folder, options.python)
        print(run([str(python), "--version"], folder), flush=True)
        cell = folder / "content" / "first_cell.py"
        cell.write_text(moved(setup_cell(), folder))
        run([str(python), str(cell)], folder)
        for line in changed(python, folder) or [f"all {len(VERSIONS)} versions were kept"]:
            print(line, flush=True)
        clone = next((folder / "content").glob("*/chapters"))
        results = [try_chapter(python, clone / path.name, folder) for path in chapters]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
