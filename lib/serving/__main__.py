"""`python -m lib.serving --model smollm2 --port 8000`. Introduced in chapter 5."""

import sys

from lib.serving.args import parse
from lib.serving.server import run

if __name__ == "__main__":
    sys.exit(run(parse()))
