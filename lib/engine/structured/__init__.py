"""Structured output: masks that leave only tokens which can still lead to a valid text. Introduced in chapter 12."""
