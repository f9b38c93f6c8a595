"""What a chapter shows: figures, tables, numbers in the prose, source listings. Introduced in chapter 1."""
