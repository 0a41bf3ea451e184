"""Tests of sidestep.laptop.translation."""
