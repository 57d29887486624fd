"""Mirrors ``serving``."""
