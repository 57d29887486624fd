"""Pictures of a cluster: nodes as boxes, GPUs as cells coloured by deployment."""

import numpy as np
from numpy.typing import NDArray

from rayfold.envs.state import ClusterState, NodePhase, ReplicaPhase

__all__ = ["gpu_owner", "render_ansi", "render_rgb"]

_FREE, _ABSENT = -1, -2
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def gpu_owner(state: ClusterState) -> NDArray[np.int64]:
    """Which deployment holds each GPU: ``(N, G)`` deployment row, -1 = free, -2 = no such device.

    A shared device shows the replica of the highest row.
    """
    st = state.arrays
    num_gpus = np.where(st.node_type >= 0, state.spec.arrays.type_num_gpus[st.node_type], 0)
    owner = np.where(np.arange(st.gpu_free.shape[1])[None] < num_gpus[:, None], _FREE, _ABSENT)
    for r in np.flatnonzero(st.replica_node >= 0):
        for j, devices in enumerate(st.replica_gpus[r].tolist()):
            n = st.replica_bundle_node[r, j] if st.replica_spans[r] else st.replica_node[r]
            for g in range(st.gpu_free.shape[1]):
                if (devices >> g) & 1:
                    owner[n, g] = st.replica_deployment[r]
    return owner.astype(np.int64)


def render_ansi(state: ClusterState) -> str:
    """One line per node: its name, its GPUs as letters (``.`` = free), and what happens on it."""
    st, owner = state.arrays, gpu_owner(state)
    lines = [f"t = {state.now_s / 3600:.2f} h"]
    for n in np.flatnonzero(st.node_phase != NodePhase.ABSENT):
        name = state.node_ids[n] if state.node_ids else f"node {n}"
        cells = "".join("." if d == _FREE else _LETTERS[d % len(_LETTERS)] for d in owner[n] if d != _ABSENT)
        marks = ["booting"] if st.node_phase[n] == NodePhase.BOOTING else []
        marks += ["fenced"] if st.node_fenced_until_s[n] > state.now_s else []
        leaving = ((st.replica_node == n) & (st.replica_peer >= 0) & (st.replica_phase == ReplicaPhase.RUNNING)).sum()
        marks += [f"{leaving} leaving"] if leaving else []
        type_name = state.spec.node_types[st.node_type[n]].name
        lines.append(f"{name:>10} {type_name:<16} [{cells}] {', '.join(marks)}".rstrip())
    legend = [f"{_LETTERS[d % len(_LETTERS)]}={dep.name}" for d, dep in enumerate(state.spec.deployments)]
    return "\n".join([*lines, " ".join(legend)])


def render_rgb(state: ClusterState) -> NDArray[np.uint8]:
    """The same as a picture: ``(H, W, 3)`` uint8."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    st, owner = state.arrays, gpu_owner(state)
    present = np.flatnonzero(st.node_phase != NodePhase.ABSENT)
    columns = max(1, min(6, len(present)))
    rows = -(-max(1, len(present)) // columns)
    width = owner.shape[1]
    figure = Figure(figsize=(2.2 * columns, 0.9 * rows + 0.5), dpi=80, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    colors = colormaps["tab20"]
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, n in zip(axes.flat, present, strict=False):
        ax.set_xlim(-0.1, width + 0.1)
        ax.set_ylim(-0.1, 1.1)
        booting = st.node_phase[n] == NodePhase.BOOTING
        for g in range(width):
            if owner[n, g] == _ABSENT:
                continue
            face = "white" if owner[n, g] == _FREE else colors(int(owner[n, g]) % 20)
            ax.add_patch(Rectangle((g, 0), 1, 1, facecolor=face, edgecolor="grey", ls=":" if booting else "-"))
        ax.set_title(state.spec.node_types[st.node_type[n]].name, fontsize=7, pad=2)
    figure.suptitle(f"t = {state.now_s / 3600:.2f} h, {len(present)} nodes", fontsize=9)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]  # matplotlib leaves it untyped
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
