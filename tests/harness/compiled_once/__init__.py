"""The folder that daemons of tests have on their interpreter's path; see `bcc.py` in it."""
