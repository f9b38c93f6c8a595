"""The sentences of chapter 9 that depend on what was measured.

Introduced in chapter 9.
"""
