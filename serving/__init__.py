"""Live snapshot, executor, decider and the local multi-node cluster."""
