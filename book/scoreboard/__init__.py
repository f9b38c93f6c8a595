"""Published claims beside recorded runs. `python -m book.scoreboard` prints them."""
