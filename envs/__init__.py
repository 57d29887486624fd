"""Cluster model, simulator, traffic, encoding and Gymnasium environments."""
