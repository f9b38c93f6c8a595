"""What the book's first page says of each chapter.

Introduced in chapter 14.
"""
