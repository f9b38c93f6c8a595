"""`pytest --nbmake` alone runs the unit tests and every chapter, in this venv's kernel, at the smallest scale."""

import os

CELL_TIMEOUT = 900  # seconds; nbmake's own 300 is short for a chapter on a busy machine

os.environ.setdefault("BOOK_SCALE", "smoke")
# The venv's kernel runs the notebooks, whatever kernels the user has registered.
os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_configure(config):
    """nbmake's defaults: a flag that the caller gave stands. Without nbmake there is nothing to set."""
    given = " ".join(config.invocation_params.args)
    if hasattr(config.option, "nbmake") and "--nbmake-timeout" not in given:
        config.option.nbmake_timeout = CELL_TIMEOUT
    if hasattr(config.option, "nbmake") and "--nbmake-kernel" not in given:
        config.option.nbmake_kernel = "python3"
