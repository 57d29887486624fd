"""Tests of the trace importers."""
