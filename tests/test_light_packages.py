"""Importing a package imports nothing heavy: what is heavy is imported with the module that needs it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_no_package_imports_pytorch():
    packages = [
        ".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("lib/**/__init__.py")
    ]
    assert {"lib", "lib.core", "lib.bench", "lib.bench.measure", "lib.bench.records", "lib.bench.notebook", "lib.bench.peers",
            "lib.loadtest"} <= set(packages)  # fmt: skip
    heavy = ("torch", "numpy", "matplotlib", "transformers", "numba")
    code = f"import sys, {', '.join(packages)}; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
