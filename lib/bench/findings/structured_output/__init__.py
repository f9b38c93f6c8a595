"""The sentences of chapter 12 that depend on what was measured.

Introduced in chapter 12.
"""
