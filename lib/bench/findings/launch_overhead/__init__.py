"""The sentences of chapter 8 that depend on what was measured.

Introduced in chapter 8.
"""
