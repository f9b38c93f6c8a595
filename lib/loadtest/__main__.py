"""`python -m lib.loadtest --url http://127.0.0.1:8000`. Introduced in chapter 6."""

import sys

from lib.loadtest.cli import main

if __name__ == "__main__":
    sys.exit(main())
