"""What training leaves behind: a run, opened, exported, converted."""
