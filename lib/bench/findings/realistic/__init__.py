"""The chapters' arithmetic for a model of 7 billion parameters on an H100.

Introduced in chapter 1.
"""
