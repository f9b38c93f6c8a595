"""The sentences of chapter 3 that depend on what was measured.

Introduced in chapter 3.
"""
