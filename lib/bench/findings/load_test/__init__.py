"""The sentences of chapter 6 that depend on what was measured.

Introduced in chapter 6.
"""
