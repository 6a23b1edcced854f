"""How training steps are executed: one by one, compiled, or recorded as a CUDA graph."""
