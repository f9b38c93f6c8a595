"""The same work done by transformers, for comparison in the same run. Introduced in chapter 1."""
