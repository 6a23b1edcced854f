"""`compress plan`: what can be measured and judged before any training."""
