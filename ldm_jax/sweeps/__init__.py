"""Many trainings as one experiment: its cells, their work, the report."""
