"""The sentences of chapter 10 that depend on what was measured.

Introduced in chapter 10.
"""
