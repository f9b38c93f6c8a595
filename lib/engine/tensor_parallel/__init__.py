"""Tensor parallelism: one model on several processes, one scheduler in rank 0. Introduced in chapter 13."""
