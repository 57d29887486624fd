"""Puts the decider into a running Serve cluster and follows what it decides: the ``serve`` verb."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import ray

import rayfold
from rayfold import ray_address
from rayfold.envs.safety import Limits
from rayfold.errors import ClusterError, InputError
from rayfold.policies.by_name import policy_maker
from rayfold.policies.protocol import Policy
from rayfold.serving import controller_patch
from rayfold.serving.decision import Mode
from rayfold.serving.executor import call_controller, serve_controller
from rayfold.serving.live_settings import LiveSettings
from rayfold.serving.snapshot import OWN_APP
from rayfold.serving.token_file import read_token

__all__ = [
    "NUM_CANDIDATES",
    "Detached",
    "connect",
    "decision_line",
    "deploy_decider",
    "detach_controller",
    "serve_decider",
]

log = logging.getLogger(__name__)

NUM_CANDIDATES = 8  # that a learned policy lists, for the journal
_READY_TIMEOUT_S = 120.0
_DETAILS_TIMEOUT_S = 30.0


def connect(address: str) -> None:
    """Connects this process to a Ray cluster, of which the address is needed later too.

    Raises:
        InputError: Not ``HOST:PORT``, or as ``ray_address.connect``.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError("--address", "HOST:PORT of a Ray cluster", address)
    ray_address.connect(address)


def _one_line(err: BaseException) -> str:
    return " ".join(str(err).split())[:300]


def _http_url(controller: Any) -> str:
    options = ray.get(controller.get_http_config.remote(), timeout=ray_address.CONNECT_TIMEOUT_S)
    host = "127.0.0.1" if options.host in ("0.0.0.0", "", "::") else options.host
    return f"http://{host}:{options.port}"


def _runtime_env(address: str) -> dict[str, Any]:
    """Nothing where the cluster runs on this machine, from the same environment; else rayfold's own files."""
    services: Any = ray.util
    if address.rpartition(":")[0] in ("127.0.0.1", "localhost", services.get_node_ip_address()):
        return {}
    return {"py_modules": [str(Path(rayfold.__file__).resolve().parent)]}


def deploy_decider(
    *,
    address: str,
    make_policy: Callable[[Limits], Policy],
    settings: LiveSettings,
    mode: Mode,
    token: str,
    journal_path: Path | None = None,
) -> str:
    """Deploys the decider into the Serve of the cluster this process is connected to.

    Args:
        address: Of the cluster; tells whether rayfold must be shipped.
        make_policy: From limits the policy that makes the plans.
        settings: What the cluster does not say of itself.
        mode: To begin with.
        token: Bearer of ``POST /mode``.
        journal_path: SQLite file on the head node; None = one in Ray's session folder there.

    Returns:
        Base URL of its HTTP interface.

    Raises:
        ClusterError: Serve does not run there, or the decider does not start.
    """
    from ray import serve

    from rayfold.serving.decider_app import ROUTE, DeciderConfig, decider_application

    controller = serve_controller()
    path = journal_path.absolute() if journal_path else None  # the replica has another working directory
    config = DeciderConfig(make_policy=make_policy, settings=settings, mode=mode, token=token, journal_path=path)
    application = decider_application(config, _runtime_env(address))
    try:
        serve.run(application, name=OWN_APP, route_prefix=ROUTE, _local_testing_mode=False)
    except (RuntimeError, TimeoutError) as err:
        raise ClusterError(f"the decider did not start: {_one_line(err)}") from err
    return f"{_http_url(controller)}{ROUTE}"


def decision_line(decision: dict[str, Any]) -> str:
    """One decision as one line, followed by one indented line per move."""
    head = (
        f"{decision['mode']} {decision['policy'] or '-'}: {decision['num_nodes']} nodes, "
        f"{decision['usd_per_h']:.2f} USD/h, {len(decision['moves'])} moves ({decision['reason']})"
    )
    lines = [
        f"  {m['deployment']} replica {m['replica_id']}: {m['from_node']} -> {m['to_node']} "
        f"{'allowed' if m['allowed'] else 'refused'} ({m['reason']})"
        for m in decision["moves"]
    ]
    return "\n".join([head, *lines])


def serve_decider(
    *,
    address: str,
    mode: Mode | str,
    policy: str = "best_fit",
    settings: LiveSettings | None = None,
    token_file: Path | None = None,
    journal_path: Path | None = None,
    progress: Callable[[str], None] = log.info,
    stop: threading.Event | None = None,
    max_decisions: int | None = None,
) -> int:
    """Attaches the decider to a running Serve cluster, tells each decision, and removes it at the end.

    Args:
        address: ``HOST:PORT`` of the cluster.
        mode: ``off``, ``observe``, ``recommend`` or ``act``.
        policy: See ``policy_maker``.
        settings: What the cluster does not say of itself.
        token_file: See ``read_token``.
        journal_path: SQLite file on the head node; None = one in Ray's session folder there.
        progress: Told each decision, in words.
        stop: Set it to end; Ctrl-C works too.
        max_decisions: End after so many.

    Returns:
        Decisions seen.

    Raises:
        InputError: The address, the policy, the mode or the token file is wrong.
        ClusterError: Serve does not run there, or the decider does not start.
    """
    if mode not in set(Mode):
        raise InputError("--mode", ", ".join(Mode), mode)
    settings = settings or LiveSettings()
    make = policy_maker(policy, num_candidates=NUM_CANDIDATES)
    token = read_token(token_file)
    stop = stop or threading.Event()
    connected_before = ray.is_initialized()
    connect(address)
    try:
        url = deploy_decider(
            address=address,
            make_policy=make,
            settings=settings,
            mode=Mode(mode),
            token=token,
            journal_path=journal_path,
        )
        progress(f"decider at {url}, mode {mode}, policy {make(settings.limits).name}")
        return _follow(url, token, settings, progress, stop, max_decisions)
    finally:
        if ray.is_initialized():
            _remove_decider()
        if not connected_before:
            ray.shutdown()


class Detached(NamedTuple):
    """What a detach found."""

    patched: list[str]  # what was patched before, by name; it no longer is
    is_declared: bool  # the decider came by ``serve deploy``: a controller that restarts deploys it again


def detach_controller(address: str) -> Detached:
    """Removes the decider of a cluster, if it runs there, and leaves the Serve controller as rayfold found it.

    Args:
        address: ``HOST:PORT`` of the cluster; a connection that is there already is used and kept.

    Raises:
        InputError: No cluster answers at the address.
        ClusterError: Serve does not run there, or something stays patched.
    """
    connected_before = ray.is_initialized()
    connect(address)
    try:
        found = Detached(list(call_controller(controller_patch.patched)), _is_declared())
        _remove_decider()  # it would attach again
        call_controller(controller_patch.detach)
        left = list(call_controller(controller_patch.patched))
    finally:
        if not connected_before:
            ray.shutdown()
    if left:
        raise ClusterError(f"still patched: {', '.join(left)}; a restart of the Serve controller undoes it")
    return found


def _is_declared() -> bool:
    details: Any = ray.get(serve_controller().get_serve_instance_details.remote(), timeout=_DETAILS_TIMEOUT_S)
    return bool(details["applications"].get(OWN_APP, {}).get("source") == "declarative")


def _remove_decider() -> None:
    from ray import serve

    try:
        serve_controller()
    except ClusterError:
        return
    serve.delete(OWN_APP)


def _follow(
    url: str,
    token: str,
    settings: LiveSettings,
    progress: Callable[[str], None],
    stop: threading.Event,
    most: int | None,
) -> int:
    seen, last_s, heard_s = 0, 0.0, time.monotonic()
    patience_s = _READY_TIMEOUT_S + settings.decision_interval_s
    bearer = {"Authorization": f"Bearer {token}"}
    with httpx.Client(timeout=10.0, trust_env=False, headers=bearer) as client:
        while not stop.wait(min(1.0, settings.decision_interval_s / 4)):
            try:
                answer = client.get(f"{url}/plan")
                decision = answer.json() if answer.status_code == 200 else {}
            except httpx.HTTPError:
                decision = {}
            if decision:
                heard_s = time.monotonic()
            if time.monotonic() - heard_s > patience_s:
                raise ClusterError(f"the decider at {url} has not decided anything for {patience_s:.0f} s")
            if decision and decision["time_s"] > last_s:
                seen, last_s = seen + 1, decision["time_s"]
                progress(decision_line(decision))
                if most is not None and seen >= most:
                    break
    return seen
