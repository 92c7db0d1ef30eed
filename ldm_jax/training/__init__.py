"""A run from its config to its last checkpoint: the workdir claimed, the session, the summary."""
