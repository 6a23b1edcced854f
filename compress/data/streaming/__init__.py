"""Data sets that stay in their files: listings, decode workers, read-ahead, batches."""
