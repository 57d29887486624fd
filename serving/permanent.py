"""The permanent form of the attachment: made by the Serve controller itself, whenever it starts.

``RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH=rayfold.serving.permanent:attach_at_start`` in the controller's environment.
Ray 2.60 calls it in the controller's ``__init__``, before the scheduler is made. It needs rayfold on the head node.
"""

import logging
from typing import Any

from rayfold.serving import controller_patch

__all__ = ["attach_at_start"]

log = logging.getLogger(__name__)


def attach_at_start() -> None:
    """Attaches to the scheduler that this process will make. Never raises: Serve would not start."""
    try:
        _attach_to_the_next_scheduler()
    except Exception:  # whatever is amiss with rayfold, Serve goes on without it
        log.exception("rayfold is not attached")


def _attach_to_the_next_scheduler() -> None:
    from ray.serve._private import default_impl

    original: Any = default_impl.create_deployment_scheduler

    def create(*args: Any, **keywords: Any) -> Any:
        default_impl.create_deployment_scheduler = original
        scheduler = original(*args, **keywords)
        try:
            log.info("rayfold: %s", controller_patch.attach_scheduler(scheduler))
        except Exception:  # as above
            log.exception("rayfold is not attached")
        return scheduler

    default_impl.create_deployment_scheduler = create
