"""The sentences of chapter 4 that depend on what was measured.

Introduced in chapter 4.
"""
