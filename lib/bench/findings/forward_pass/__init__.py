"""The sentences of chapter 1 that depend on what was measured.

Introduced in chapter 1.
"""
