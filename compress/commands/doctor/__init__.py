"""`compress doctor`: what this machine has, and a self-test of the verdict."""
