"""Cluster model, simulator, traffic, encoding and Gymnasium environments.

Importing this package registers ``rayfold/Compaction-v0``.
"""

import gymnasium

__all__: list[str] = []

if "rayfold/Compaction-v0" not in gymnasium.registry:
    gymnasium.register("rayfold/Compaction-v0", entry_point="rayfold.envs.compaction_env:CompactionEnv")
