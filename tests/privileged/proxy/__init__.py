"""Tests of the zygote, the sandbox and the supervisor."""
