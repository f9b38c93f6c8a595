"""From requests to tokens: batch, sampling, scheduling and the loop around them. Introduced in chapter 1."""
