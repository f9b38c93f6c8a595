"""Speculative decoding: draft tokens for a step to verify, and how many of them.

Introduced in chapter 10.
"""
