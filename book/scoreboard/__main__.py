"""`python -m book.scoreboard` prints the scoreboard."""

import sys

from book.scoreboard.claims import main

if __name__ == "__main__":
    sys.exit(main())
