"""Models on the fused kernels: they load public checkpoints and give the same outputs."""
