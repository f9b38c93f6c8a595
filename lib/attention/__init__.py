"""One attention interface, one implementation per way of keeping K and V. Introduced in chapter 1."""
