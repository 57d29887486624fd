"""Builds the decider's application for ``serve deploy``: the import path of ``config.yaml`` and of a ``RayService``."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray.serve import Application

from rayfold.policies.by_name import policy_maker
from rayfold.serving.attach import NUM_CANDIDATES
from rayfold.serving.decider_app import DeciderConfig, decider_application
from rayfold.serving.decision import Mode
from rayfold.serving.live_settings import parse_live_settings
from rayfold.serving.token_file import read_token

__all__ = ["DeployArgs", "build"]


class DeployArgs(BaseModel):
    """What stands under ``args``; the flags of ``rayfold serve``. Files are on the head node."""

    model_config = ConfigDict(extra="forbid")

    mode: Mode = Mode.RECOMMEND
    policy: str = "learned"  # a heuristic, "learned", or the directory of a bundle
    settings: dict[str, Any] = Field(default_factory=dict)  # as in a settings file
    token_file: Path | None = None  # None: nobody can steer it
    journal: Path | None = None  # None: in Ray's session folder, and gone with it


def build(args: DeployArgs) -> Application:
    """The application.

    Raises:
        InputError: The policy or the settings are wrong.
    """
    config = DeciderConfig(
        make_policy=policy_maker(args.policy, num_candidates=NUM_CANDIDATES),
        settings=parse_live_settings(args.settings, "args.settings"),
        mode=args.mode,
        token=args.token_file or read_token(None),
        journal_path=args.journal,
    )
    application: Application = decider_application(config)
    return application
