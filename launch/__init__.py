"""Where a job runs: `python -m launch.PLACE [--command=sample] FLAGS`; see docs/launch.md."""
