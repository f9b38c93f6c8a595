"""`python -m lib.serving.fleet --replicas 2 --model smollm2 --port 8000`. Introduced in chapter 13."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from lib.serving.fleet.options import parse


def main() -> int:
    """Returns 0 after a signal, and 1 where Ray Serve is not installed."""
    fleet, server = parse()
    if find_spec("ray") is None:
        print(
            "python -m lib.serving.fleet needs Ray Serve, which is not installed: "
            "pip install -e '.[fleet]'",
            file=sys.stderr,
        )
        return 1
    from lib.serving.fleet.deployment import run

    run(fleet, server)
    return 0


if __name__ == "__main__":
    sys.exit(main())
