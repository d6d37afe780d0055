"""The exit codes. 2 is argparse's, for a wrong command line."""

OK, FAILED, MISCONFIGURED, CANCELLED, TERMINATED = 0, 1, 3, 130, 143
