"""Training a run from its config to its last checkpoint: the workdir, the session, the summary."""
