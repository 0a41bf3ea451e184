"""The command line on systems other than Linux, emulated; `preamble` says how far."""
