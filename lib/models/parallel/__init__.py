"""One rank's part of a model: what it holds, how it is loaded, and the layers that communicate. Introduced in chapter 13."""
