"""Models as the papers describe them, and the checkpoints that fill them. Introduced in chapter 1."""
