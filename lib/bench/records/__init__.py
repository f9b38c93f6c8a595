"""Recorded runs: the format, the files, and the command that writes them. Introduced in chapter 1."""
