"""Policies: the protocol, heuristics, the network, the learned policy and its bundle."""
