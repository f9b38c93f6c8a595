"""The sentences of chapter 11 that depend on what was measured.

Introduced in chapter 11.
"""
