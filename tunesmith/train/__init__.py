"""Train: a job and its settings -> losses, optimizer, loop, checkpoints -> a run folder."""
