"""Measuring: time, memory, counts, rooflines, profiles, and the machine they were taken on. Introduced in chapter 1."""
