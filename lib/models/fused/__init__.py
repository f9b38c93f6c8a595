"""The step around the matrix products of a CPU in few calls: compiled kernels. Introduced in chapter 8."""
