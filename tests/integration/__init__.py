"""Tests of several packages together that need no root."""
