"""Cluster model, simulator, traffic, encoding and Gymnasium environments.

Importing this package registers ``rayfold/Compaction-v1``.
"""

import gymnasium

__all__: list[str] = []

if "rayfold/Compaction-v1" not in gymnasium.registry:
    gymnasium.register("rayfold/Compaction-v1", entry_point="rayfold.envs.compaction_env:CompactionEnv")
