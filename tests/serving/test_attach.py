"""What a user gets wrong is one line; what is right is read as written."""

import os
import socket
import time
from pathlib import Path

import pytest

from rayfold.envs.cluster import Interval
from rayfold.envs.safety import Limits
from rayfold.errors import InputError
from rayfold.policies.by_name import make_policy
from rayfold.serving.attach import detach_controller, serve_decider
from rayfold.serving.live_settings import load_live_settings
from rayfold.serving.local_cluster import free_port
from rayfold.serving.token_file import read_token


def test_no_cluster_at_the_address_is_told_soon() -> None:
    """A closed port is named within seconds, in one line."""
    address, begun_s = f"127.0.0.1:{free_port()}", time.monotonic()
    with pytest.raises(InputError, match=r"--address: expected a running Ray cluster") as caught:
        serve_decider(address=address, mode="observe")
    assert address in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun_s < 15.0


def test_detach_asks_for_a_cluster() -> None:
    """A closed port and a malformed address are told in one line."""
    for address, told in ((f"127.0.0.1:{free_port()}", "no answer"), ("nowhere", "HOST:PORT")):
        with pytest.raises(InputError, match=told):
            detach_controller(address)


@pytest.mark.parametrize("address", ["", "nowhere", "127.0.0.1:port", ":1"])
def test_malformed_address(address: str) -> None:
    """HOST:PORT is asked for."""
    with pytest.raises(InputError, match="HOST:PORT"):
        serve_decider(address=address, mode="observe")


def test_unknown_mode_and_policy(tmp_path: Path) -> None:
    """Both are named with what would do."""
    with pytest.raises(InputError, match="off, observe, recommend, act"):
        serve_decider(address="127.0.0.1:1", mode="dance")
    with pytest.raises(InputError, match=r"best_fit, .* or the directory of a policy bundle"):
        make_policy("worst_fit", Limits())
    with pytest.raises(InputError):
        make_policy(str(tmp_path), Limits())
    assert make_policy("best_fit", Limits()).name == "best_fit"


def test_token_file_must_be_private(tmp_path: Path) -> None:
    """0600 is read, anything wider refused; without a file each token is new."""
    path = tmp_path / "token"
    path.write_text("secret\n")
    path.chmod(0o644)
    with pytest.raises(InputError, match="0600"):
        read_token(path)
    path.chmod(0o600)
    assert read_token(path) == "secret"
    for text, told in ((" ", "an empty file"), ("two\nlines", "one line"), ("schlüssel", "ASCII")):
        path.write_text(text)
        with pytest.raises(InputError, match=told):
            read_token(path)
    with pytest.raises(InputError, match="No such file"):
        read_token(tmp_path / "none")
    assert read_token(None) != read_token(None)


def test_token_of_another_user_may_be_the_group_s_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Kubernetes mounts a secret; one's own may not, and nobody's may be open to all or written by others."""
    path = tmp_path / "token"
    path.write_text("secret")
    path.chmod(0o440)
    with pytest.raises(InputError, match="0600"):
        read_token(path)
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    assert read_token(path) == "secret"
    for mode in (0o444, 0o460, 0o441):
        path.chmod(mode)
        with pytest.raises(InputError, match="0600"):
            read_token(path)


def test_settings_are_read_as_written(tmp_path: Path) -> None:
    """Nested fields arrive; the rest keeps its default; an application speaks for its deployments."""
    path = tmp_path / "live.yaml"
    path.write_text(
        "idle_timeout_s: 15\n"
        "node_types: {gpu4: {price_usd_per_h: 4, boot_s: [8, 15]}}\n"
        "deployments: {a: {is_movable: false}, b/x: {startup_s: [2, 5]}}\n"
        "limits: {max_concurrent_moves: 2}\n"
    )
    settings = load_live_settings(path)
    assert settings.idle_timeout_s == 15.0
    assert settings.node_types["gpu4"].boot_s == Interval(8.0, 15.0)
    assert settings.limits == Limits(max_concurrent_moves=2)
    assert not settings.of_deployment("a", "anything").is_movable
    assert settings.of_deployment("b", "x").startup_s == Interval(2.0, 5.0)
    assert settings.of_deployment("b", "y").is_movable
    path.write_text("")
    assert load_live_settings(path).decision_interval_s == 60.0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("idle_timeout: 15", "idle_timeout"),
        ("node_types: {gpu4: {price: 4}}", "node_types.gpu4.price"),
        ("decision_interval_s: soon", "decision_interval_s"),
        ("a: [", "YAML"),
    ],
)
def test_wrong_settings_name_the_field(tmp_path: Path, text: str, named: str) -> None:
    """One line that names file and field."""
    path = tmp_path / "live.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_live_settings(path)
    assert named in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_free_port_is_free() -> None:
    """It can be bound at once."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", free_port()))
