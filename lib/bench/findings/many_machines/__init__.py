"""The sentences of chapter 13 that depend on what was measured.

Introduced in chapter 13.
"""
