"""Measurement, records and figures of the book. Its parts are imported by name. Introduced in chapter 1."""
