"""How fast the cluster model is: environment steps, large clusters, a day of llm_api, memory, threads.

    python benchmarks/env.py [--json OUT]

CPU time of this process, the least of several repeats; only the thread scaling is wall time. Compilation is excluded.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rayfold.envs.cluster import (
    AutoscalingConfig,
    ClusterSettings,
    ClusterSpec,
    Deployment,
    NodeType,
    ReplicaShape,
    SchedulingStrategy,
)
from rayfold.envs.encoding import encode_state
from rayfold.envs.episode import scenario_layout
from rayfold.envs.generator import GeneratorSettings, TrafficKind
from rayfold.envs.initial_state import initial_state
from rayfold.envs.safety import Limits
from rayfold.envs.scenario import Scenario, Split, load_scenario
from rayfold.envs.simulator import Simulator
from rayfold.envs.traffic import Traffic
from rayfold.envs.traffic_source import GeneratorSource, RequestModel
from rayfold.envs.vector_env import CompactionVectorEnv

Times = dict[str, float]


def fleet(num_nodes: int, num_deployments: int, replicas_per_node: float = 4.0) -> Scenario:
    """8-GPU nodes of one type, deployments of 1 and 2 GPUs, generated daily traffic."""
    most = max(2, round(1.3 * replicas_per_node * num_nodes / num_deployments))
    deployments = tuple(
        Deployment(
            name=f"d{i}",
            shape=ReplicaShape(bundles=({"GPU": 1.0 + i % 2, "CPU": 4.0, "memory_gib": 32.0},)),
            autoscaling=AutoscalingConfig(min_replicas=1, max_replicas=most, target_ongoing_requests=8),
            max_ongoing_requests=16.0,
        )
        for i in range(num_deployments)
    )
    node = NodeType(
        name="a100",
        resources={"GPU": 8.0, "CPU": 96.0, "memory_gib": 1024.0},
        price_usd_per_h=27.0,
        max_nodes=num_nodes,
    )
    spec = ClusterSpec(
        node_types=(node,), deployments=deployments, settings=ClusterSettings(scheduling=SchedulingStrategy.PACK)
    )
    service_s, mean = np.full(num_deployments, 2.0), 8.0 * most / 1.3 / 2.0
    generator = GeneratorSettings(kind=TrafficKind.DIURNAL, mean_rps=mean, swing_frac=0.2)
    return Scenario(
        name=f"{num_nodes}x{num_deployments}",
        description="",
        spec=spec,
        limits=Limits(),
        source=GeneratorSource(settings=(generator,) * num_deployments, bin_s=60.0),
        requests=RequestModel(
            service_s,
            np.full(num_deployments, 100.0),
            np.full(num_deployments, 2.0),
            np.zeros(num_deployments, np.bool_),
        ),
        horizon_s=86400.0,
    )


def least_s(run: Callable[[], None], repeats: int) -> float:
    """Least CPU time of several runs."""
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        run()
        times.append(time.process_time() - begun)
    return min(times)


def random_valid(env: CompactionVectorEnv, obs: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
    """A random allowed move in each cluster, or NOOP with probability 0.2 and where there is none."""
    parts, d = env.layout.split(obs), env.layout.num_deployments
    actions = np.zeros((env.num_envs, 2), np.int64)
    for b in np.flatnonzero(rng.random(env.num_envs) >= 0.2):
        cells = np.flatnonzero(parts["source_mask"][b])
        if not len(cells):
            continue
        cell = int(rng.choice(cells))
        takers = np.flatnonzero(parts["destination_mask"][b][:, cell % d])
        takers = takers[takers != cell // d]
        if len(takers):
            actions[b] = 1 + cell, int(rng.choice(takers))
    return actions


def step_speed(num_envs: int = 64, num_steps: int = 300, repeats: int = 3) -> Times:
    """16 nodes x 12 deployments: the same random actions with observations and without."""
    scenario, rng = fleet(16, 12), np.random.default_rng(0)
    env = CompactionVectorEnv([scenario], num_envs)
    obs, _ = env.reset(seed=0)
    actions = []
    for _ in range(num_steps):
        actions.append(random_valid(env, obs, rng))
        obs = env.step(actions[-1])[0]
    moves = float(np.mean([(a[:, 0] > 0).mean() for a in actions]))

    def play(step: Callable[[NDArray[np.int64]], Any]) -> float:
        best = np.inf
        for _ in range(repeats):
            env.reset(seed=0)
            begun = time.process_time()
            for action in actions:
                step(action)
            best = min(best, time.process_time() - begun)
        return float(num_envs * num_steps / best)

    return {"move_frac": moves, "steps_per_s": play(env.step), "steps_per_s_blind": play(env.step_blind)}


def thread_scaling(num_envs: int = 64, num_steps: int = 60, rounds: int = 7) -> Times:
    """Wall time of one thread over that of two, NOOPs with observations: taken in turns, since others load the machine.

    The kernels release the GIL; what is left to one thread is the memory of the observations.
    """
    actions = np.zeros((num_envs, 2), np.int64)
    envs = [CompactionVectorEnv([fleet(16, 12)], num_envs, num_threads=n) for n in (1, 2)]

    for env in envs:
        env.reset(seed=0)

    def wall_s(env: CompactionVectorEnv) -> float:
        begun = time.perf_counter()
        for _ in range(num_steps):
            env.step(actions)
        return time.perf_counter() - begun

    ratios = sorted(wall_s(envs[0]) / wall_s(envs[1]) for _ in range(rounds))
    for env in envs:
        env.close()
    return {"two_over_one": ratios[rounds // 2], "least": ratios[0], "most": ratios[-1]}


def size_scaling(sizes: tuple[int, ...] = (10, 32, 100, 316, 1000), num_ticks: int = 20) -> list[Times]:
    """A tick of 60 s, and masks with observation, by number of nodes; 50 deployments, 4 replicas a node."""
    rows = []
    for num_nodes in sizes:
        scenario = fleet(num_nodes, 50)
        traffic = scenario.with_horizon(7200.0).sample(np.random.default_rng(0), Split.TRAIN)
        state = initial_state(scenario.spec, traffic, np.random.default_rng(0))
        sim = Simulator(state, traffic, scenario.limits, np.random.default_rng(0))
        layout = scenario_layout(scenario)
        out = np.zeros(layout.size, np.float32)
        sim.advance(12)
        encode_state(sim.view, scenario.limits, layout, 0.0, out)
        begun = time.process_time()
        for _ in range(num_ticks):
            sim.advance(12)
        tick_s = (time.process_time() - begun) / num_ticks
        view = sim.view
        begun = time.process_time()
        for _ in range(num_ticks):
            encode_state(view, scenario.limits, layout, 0.0, out)
        encode_s = (time.process_time() - begun) / num_ticks
        replicas = int((view.arrays.replica_phase > 0).sum())
        rows.append({"nodes": num_nodes, "replicas": replicas, "tick_ms": 1e3 * tick_s, "obs_ms": 1e3 * encode_s})
    return rows


def exponent(rows: list[Times], name: str) -> float:
    """Slope of the logarithms."""
    return float(np.polyfit(np.log([r["nodes"] for r in rows]), np.log([r[name] for r in rows]), 1)[0])


def day_of_llm_api(repeats: int = 5) -> Times:
    """24 h at a 30 s tick, nothing moved; drawing the traffic and the first state is told apart."""
    scenario = load_scenario("llm_api", synthetic=True)
    settings = replace(scenario.spec.settings, decision_interval_s=30.0)
    scenario = replace(scenario, spec=replace(scenario.spec, settings=settings))

    def begin() -> Simulator:
        rng = np.random.default_rng(0)
        traffic: Traffic = scenario.sample(rng, Split.TRAIN)
        return Simulator(initial_state(scenario.spec, traffic, rng), traffic, scenario.limits, rng)

    def run(sim: Simulator) -> None:
        while sim.num_steps_left:
            sim.advance(6)

    run(begin())
    sims: list[Simulator] = []
    reset_s = least_s(lambda: sims.append(begin()), repeats)
    return {"day_ms": 1e3 * least_s(lambda: run(sims.pop()), repeats), "reset_ms": 1e3 * reset_s}


def memory_mb(num_nodes: int = 64, num_deployments: int = 12) -> float:
    """Arrays of one environment with a 24 h episode; the description is shared by all."""
    env = CompactionVectorEnv([fleet(num_nodes, num_deployments)], 1)
    env.reset(seed=0)
    world = env.episodes[0].world()

    def size(value: Any) -> int:
        if isinstance(value, np.ndarray):
            return value.nbytes
        return sum(size(part) for part in value) if isinstance(value, tuple) else 0

    return (size(world) - size(world.spec) + 4 * env.layout.size) / 2**20


def cartpole_speed(num_envs: int = 64, num_steps: int = 2000) -> float:
    """Steps per second of gymnasium's own vectorised NumPy CartPole: the peer of the same run."""
    env = gym.make_vec("CartPole-v1", num_envs, vectorization_mode="vector_entry_point")
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(2, size=(num_steps, num_envs))

    def play() -> None:
        for action in actions:
            env.step(action)

    speed = num_envs * num_steps / least_s(play, 3)
    env.close()
    return speed


def main() -> None:
    """Prints every figure, and writes them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    small, peer, sizes, day = step_speed(), cartpole_speed(), size_scaling(), day_of_llm_api()
    largest = sizes[-1]
    result = {
        "steps_per_s_16x12": small["steps_per_s"],
        "core_steps_per_s_16x12": small["steps_per_s_blind"],
        "move_frac_16x12": small["move_frac"],
        "cartpole_steps_per_s": peer,
        "steps_over_cartpole": small["steps_per_s"] / peer,
        "tick_ms_1000x50": largest["tick_ms"],
        "observe_ms_1000x50": largest["obs_ms"],
        "day_ms_llm_api": day["day_ms"],
        "reset_ms_llm_api": day["reset_ms"],
        "scaling_exponent": exponent(sizes, "tick_ms"),
        "observe_scaling_exponent": exponent(sizes, "obs_ms"),
        "memory_mb_64": memory_mb(),
        **thread_scaling(),
        "sizes": sizes,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
