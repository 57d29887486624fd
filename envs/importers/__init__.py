"""Readers of published traffic formats, one file each; ``importing.py`` turns any of them into a rates file."""
