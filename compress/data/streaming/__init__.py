"""Data sets that stay in their files: listings, decode processes, read-ahead, batches. See README.md."""
