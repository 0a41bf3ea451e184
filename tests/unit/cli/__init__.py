"""Tests of sidestep.cli."""
