"""The safety filter against invariants written without it, on random states and arbitrary moves.

``facts``: random clusters, and what they are in plain numbers. ``world``: random states of them. ``invariants``: what
no allowed move may break. ``harness``: runs them by the million, and alone imports a rule of ``envs/safety.py``.
"""
