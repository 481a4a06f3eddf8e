"""The command line: resuming, sweeps and their table of jobs."""
