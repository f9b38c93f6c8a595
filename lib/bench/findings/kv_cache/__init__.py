"""The sentences of chapter 2 that depend on what was measured.

Introduced in chapter 2.
"""
