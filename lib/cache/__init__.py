"""Where K and V live between steps, and who may write where. Introduced in chapter 1."""
