"""`python -m lib.serving --model smollm2 --port 8000`. Introduced in chapter 5."""

import sys

from lib.serving.server import run
from lib.serving.server_options import parse

if __name__ == "__main__":
    sys.exit(run(parse()))
