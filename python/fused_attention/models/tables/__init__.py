"""One mapping table per family of checkpoints; `weights.table` says how they are read."""
