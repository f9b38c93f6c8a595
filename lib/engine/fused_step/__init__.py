"""All layers of a decode step on a CPU in one compiled call. Introduced in chapter 8."""
