"""Tests of sidestep.tunnel."""
