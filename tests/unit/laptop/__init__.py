"""Tests of sidestep.laptop."""
