"""Where a job runs: `python -m launch.PLACE --config=... --workdir=...`; see docs/launch.md."""
