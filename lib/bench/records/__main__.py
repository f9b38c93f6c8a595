"""`python -m lib.bench.records` records every chapter. Introduced in chapter 1."""

import sys

from lib.bench.records.command import main

if __name__ == "__main__":
    sys.exit(main())
