"""Tests of sidestep.aio."""
