"""The sentences of chapter 5 that depend on what was measured.

Introduced in chapter 5.
"""
