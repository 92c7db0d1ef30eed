"""Many trainings as one experiment: its cells, the work that each needs, the report."""
