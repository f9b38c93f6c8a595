"""Quantised layers. Introduced in chapter 11."""
