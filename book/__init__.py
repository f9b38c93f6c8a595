"""The book's own code: its tools, its scoreboard, the checks of its exercises. No part of the installed packages."""
