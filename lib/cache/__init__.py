"""Storage of K and V between steps, and its allocation to sequences. Introduced in chapter 1."""
