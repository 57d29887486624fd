"""Node provider of the local cluster: every "machine" is a raylet on the loopback address.

Loaded by Ray's autoscaler inside the private cluster that ``local_cluster.py`` starts. It differs from Ray's
own fake provider in three ways: nodes bind to the loopback address only, node ids are random (so that ids of
successive nodes are told apart at a glance), and the node type is also a label.
"""

import json
import secrets
from typing import Any

import ray._private.ray_constants as ray_constants
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

__all__ = ["LOOPBACK", "NODE_GROUP_LABEL", "LocalNodeProvider"]

LOOPBACK = "127.0.0.1"
NODE_GROUP_LABEL = "ray.io/node-group"  # the label KubeRay sets to the worker group's name


class LocalNodeProvider(FakeMultiNodeProvider):
    """Starts and stops raylets on this machine."""

    def _next_hex_node_id(self) -> str:
        return secrets.token_hex(28)

    def _create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        node_type = tags[TAG_RAY_USER_NODE_TYPE]
        node_id = self._next_hex_node_id()
        custom = {k: v for k, v in resources.items() if k not in ("CPU", "GPU", "memory", "object_store_memory")}
        all_labels = {**(labels or {}), NODE_GROUP_LABEL: node_type}
        params = RayParams(
            node_ip_address=LOOPBACK,
            min_worker_port=0,
            max_worker_port=0,
            dashboard_port=None,
            dashboard_agent_listen_port=0,
            num_cpus=int(resources.get("CPU", 0)),
            num_gpus=int(resources.get("GPU", 0)),
            memory=resources.get("memory"),
            object_store_memory=resources.get("object_store_memory"),
            resources=custom,
            labels=all_labels,
            redis_address=self._gcs_address,
            gcs_address=self._gcs_address,
            env_vars={
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": node_id,
                "RAY_CLOUD_INSTANCE_ID": node_id,
                "RAY_NODE_TYPE_NAME": node_type,
                ray_constants.RESOURCES_ENVIRONMENT_VARIABLE: json.dumps(custom),
                ray_constants.LABELS_ENVIRONMENT_VARIABLE: json.dumps(all_labels),
            },
        )
        with self.lock:
            node = Node(params, head=False, shutdown_at_exit=False, spawn_reaper=False)
            nodes: dict[str, dict[str, Any]] = self._nodes
            nodes[node_id] = {
                "tags": {
                    TAG_RAY_NODE_KIND: NODE_KIND_WORKER,
                    TAG_RAY_USER_NODE_TYPE: node_type,
                    TAG_RAY_NODE_NAME: node_id,
                    TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
                    **tags,
                },
                "node": node,
            }
