"""The sentences of chapter 7 that depend on what was measured.

Introduced in chapter 7.
"""
