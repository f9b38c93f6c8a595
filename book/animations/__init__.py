"""Animated diagrams: what the engine's own scheduler, block manager and graph runner do, step by step.

`python -m book.animations` runs them and writes book/images/animated_*.svg and book/_static/animations.css.
"""
