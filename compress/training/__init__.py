"""Training: the loop, one step, how steps are executed, the teacher, CPU kernels."""
