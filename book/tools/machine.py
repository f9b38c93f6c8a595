"""One line a fact about the machine at hand: hardware, system, versions, scale.  Plain Python, works without lib."""

from __future__ import annotations

import os
import platform
from importlib import metadata


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def scale() -> str:
    """BOOK_SCALE as lib.bench understands it; the default follows the device."""
    try:
        from lib.bench.scale import scale as lib_scale
    except ImportError:
        return os.environ.get("BOOK_SCALE") or "cpu"
    return lib_scale()


def describe_machine() -> dict[str, str]:
    """Facts for the execution page and the terminal, in the order they are shown."""
    try:
        from lib.bench.measure.machine import fingerprint
    except ImportError:
        hardware, system = platform.machine(), f"{platform.system()} {platform.release()}"
        python = platform.python_version()
        versions = {name: _version(name) for name in ("torch", "transformers")}
    else:
        facts = fingerprint()
        hardware, system = facts["hardware"]["label"], facts["os"]
        versions = dict(facts["versions"])
        python = versions.pop("python")
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return {
        "Hardware": hardware,
        "System": system,
        "Python": python,
        "Packages": packages,
        "Scale": scale(),
    }
