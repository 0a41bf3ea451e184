"""Tests of sidestep.laptop.channels."""
