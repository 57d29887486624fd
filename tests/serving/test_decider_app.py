"""The application's own part: what was set over HTTP outlives a replica, and not a deployment. No Ray is started."""

import dataclasses
from pathlib import Path

import pytest

from rayfold.errors import InputError
from rayfold.policies.best_fit import BestFit
from rayfold.serving.decider_app import DeciderConfig, LiveControls
from rayfold.serving.decision import Mode
from rayfold.serving.live_settings import LiveSettings


@pytest.fixture
def config(tmp_path: Path) -> DeciderConfig:
    """Begins in mode act."""
    return DeciderConfig(
        make_policy=BestFit,
        settings=LiveSettings(decision_interval_s=5.0),
        mode=Mode.ACT,
        token="t",
        journal_path=tmp_path / "j.sqlite3",
    )


def _stop(controls: LiveControls) -> None:
    controls.decider.stop()
    controls.close()


def test_restarted_replica_keeps_what_was_set(config: DeciderConfig) -> None:
    """A decider that was told to observe does not act again because its process died; a new deployment begins anew."""
    first = LiveControls(config)
    assert first.decider.mode == Mode.ACT
    first.set_mode(Mode.OBSERVE)
    first.apply_settings({"brakes": {"moves_per_h": 3}})
    first.decider.pause("incident")
    _stop(first)
    second = LiveControls(config)
    assert second.decider.mode == Mode.OBSERVE
    assert second.decider.settings == first.decider.settings
    assert second.decider.paused == "incident"
    _stop(second)
    third = LiveControls(dataclasses.replace(config, deployment_id="another"))
    assert third.decider.mode == Mode.ACT
    assert third.decider.settings == config.settings
    assert third.decider.paused == "incident", "a pause ends when somebody ends it"
    _stop(third)


def test_settings_reach_executor_and_lease(config: DeciderConfig) -> None:
    """Time-outs and fence are the new ones at once; a lease outlives three ticks, whatever it is set to."""
    controls = LiveControls(config)
    controls.apply_settings({"move_timeout_s": 7.0, "decision_interval_s": 100.0, "limits": {"fence_s": 9.0}})
    assert (controls._executor.move_timeout_s, controls._executor.fence_s) == (7.0, 9.0)
    assert controls._lease.ttl_s == 300.0
    with pytest.raises(InputError, match="move_timeout_s"):
        controls.apply_settings({"move_timeout_s": 0.0, "decision_interval_s": 1.0})
    assert controls._lease.ttl_s == 300.0
    assert controls.decider.settings.decision_interval_s == 100.0
    _stop(controls)
