"""Where the nodes of a computation graph stand in a drawing, and the curve that each edge takes.

One unit of x is a column (a head), one unit of y is a row (a layer). Row `l` holds the heads of layer `l`; the layer's
MLP stands in a column of its own at the right, a little higher, since it reads the heads beside it. Embeddings are in
the row below layer 0 and `logits` in the row above the last layer, so that every edge runs upwards or to the right.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from circuitdisc.graph import ComputationGraph, Node

# Pixels. Columns and rows shrink for large models and stop growing for small ones.
_WIDTH, _HEIGHT = 900.0, 1000.0
_COLUMN = (26.0, 78.0)
_ROW = (30.0, 104.0)
_NODE = (8.0, 38.0)
_MLP_GAP, _MLP_RISE = 0.4, 0.32  # columns right of the last head, rows above the heads of the layer
_LOGITS_RISE = 0.3
_BENDS = (0.4, -0.4, 0.75, -0.75, 1.2, -1.2)  # columns by which an edge may be pushed aside, in the order of trial
_CLEARANCE = 1.15  # radii that an edge should keep from a head that it only passes


@dataclass(frozen=True)
class Layout:
    """The positions of one graph's nodes, in columns and rows; sizes in pixels."""

    graph: ComputationGraph

    @cached_property
    def column(self) -> float:
        """Pixels from one column to the next."""
        return float(np.clip(_WIDTH / (self.graph.n_heads + 1.5), *_COLUMN))

    @cached_property
    def row(self) -> float:
        """Pixels from one row to the next."""
        return float(np.clip(_HEIGHT / (self.graph.n_layers + 1.5), *_ROW))

    @cached_property
    def node_size(self) -> float:
        """Diameter of a node in pixels."""
        return float(np.clip(0.55 * min(self.column, self.row), *_NODE))

    @property
    def radius_x(self) -> float:
        """Half a node, in columns."""
        return self.node_size / 2 / self.column

    @property
    def radius_y(self) -> float:
        """Half a node, in rows."""
        return self.node_size / 2 / self.row

    @property
    def mlp_x(self) -> float:
        return self.graph.n_heads + _MLP_GAP

    @property
    def x_range(self) -> tuple[float, float]:
        return -0.8, (self.mlp_x + 2.2 if self.graph.has_mlp else self.graph.n_heads - 0.2)

    @property
    def y_range(self) -> tuple[float, float]:
        return -1.6, self.graph.n_layers + _LOGITS_RISE + 0.6

    def position(self, node: Node) -> tuple[float, float]:
        """x and y of a node's centre."""
        if node.kind == "head":
            return float(node.head), float(node.layer)
        if node.kind == "mlp":
            return self.mlp_x, node.layer + _MLP_RISE
        middle = (self.graph.n_heads - 1) / 2
        if node.kind == "logits":
            return middle, self.graph.n_layers + _LOGITS_RISE
        return middle + {"tok_embed": -0.75, "pos_embed": 0.75}.get(node.kind, 0.0), -1.0

    @cached_property
    def sender_xy(self) -> Float[np.ndarray, "S 2"]:
        return np.array([self.position(node) for node in self.graph.senders])

    @cached_property
    def receiver_xy(self) -> Float[np.ndarray, "R 2"]:
        """The centre of each receiver's node."""
        return np.array([self.position(receiver.node) for receiver in self.graph.receivers])

    @cached_property
    def port_xy(self) -> Float[np.ndarray, "R 2"]:
        """Where edges land: q, k, v from left to right under a head, the left side of an MLP, under `logits`."""
        offset = {"q": (-0.6, -0.8), "k": (0.0, -1.0), "v": (0.6, -0.8), "mlp": (-1.0, 0.0), "logits": (0.0, -1.0)}
        radii = np.array([self.radius_x, self.radius_y])
        return self.receiver_xy + np.array([offset[receiver.kind] for receiver in self.graph.receivers]) * radii

    def curves(
        self,
        receivers: Int[np.ndarray, "E"],
        senders: Int[np.ndarray, "E"],
        points: int,
        obstacles: Bool[np.ndarray, "L H"] | None = None,
    ) -> Float[np.ndarray, "E P 2"]:
        """A cubic Bézier curve for each edge, as `points` points from sender to receiver.

        Args:
            receivers, senders: the edges.
            points: points of each curve.
            obstacles: the heads that are drawn solid; an edge bends around those that it only passes, where it can.
        """
        corners = self._corners(receivers, senders)
        best = _bezier(corners, points)
        if obstacles is None or not len(receivers):
            return best
        may_bend = np.array([self.graph.receivers[r].kind != "mlp" for r in receivers], dtype=bool)
        hits = self._hits(best, receivers, senders, obstacles)
        for bend in _BENDS:
            bent = corners.copy()
            bent[may_bend, 1:3, 0] += bend
            curves = _bezier(bent, points)
            hits_of_bent = self._hits(curves, receivers, senders, obstacles)
            better = hits_of_bent < hits
            best[better], hits[better] = curves[better], hits_of_bent[better]
        return best

    def _corners(self, receivers: Int[np.ndarray, "E"], senders: Int[np.ndarray, "E"]) -> Float[np.ndarray, "E 4 2"]:
        """Start, two control points and end of each edge's curve."""
        start, end = self.sender_xy[senders].copy(), self.port_xy[receivers].copy()
        rise, run = end[:, 1] - start[:, 1], end[:, 0] - start[:, 0]
        from_mlp = np.array([self.graph.senders[s].kind == "mlp" for s in senders], dtype=bool)
        to_mlp = np.array([self.graph.receivers[r].kind == "mlp" for r in receivers], dtype=bool)

        first, second = start.copy(), end.copy()  # leave upwards, arrive upwards
        first[:, 1] += 0.4 * rise
        second[:, 1] -= 0.4 * rise

        out_of_mlp = from_mlp & ~to_mlp  # leave to the left, clear of the MLPs above
        first[out_of_mlp] = start[out_of_mlp] + np.stack([0.25 * run, 0.15 * rise], axis=-1)[out_of_mlp]

        into_mlp = to_mlp & ~from_mlp  # arrive from the left
        second[into_mlp] = end[into_mlp] - np.stack([np.minimum(1.0, 0.5 * run), 0 * run], axis=-1)[into_mlp]

        among_mlps = to_mlp & from_mlp  # arcs at the right of the column, wider the longer they are
        bulge = np.stack([np.minimum(0.35 + 0.16 * rise, 1.9), 0 * rise], axis=-1)[among_mlps]
        for array in (start, end):
            array[among_mlps, 0] = self.mlp_x + self.radius_x
        first[among_mlps], second[among_mlps] = start[among_mlps] + bulge, end[among_mlps] + bulge
        return np.stack([start, first, second, end], axis=1)

    def _hits(
        self,
        curves: Float[np.ndarray, "E P 2"],
        receivers: Int[np.ndarray, "E"],
        senders: Int[np.ndarray, "E"],
        obstacles: Bool[np.ndarray, "L H"],
    ) -> Int[np.ndarray, "E"]:
        """How many points of each curve lie behind a solid head that is neither its sender nor its receiver."""
        column, row = np.rint(curves[..., 0]).astype(int), np.rint(curves[..., 1]).astype(int)
        inside = (row >= 0) & (row < self.graph.n_layers) & (column >= 0) & (column < self.graph.n_heads)
        solid = inside & obstacles[np.where(inside, row, 0), np.where(inside, column, 0)]
        offset = (curves - np.stack([column, row], axis=-1)) / (_CLEARANCE * np.array([self.radius_x, self.radius_y]))
        nearest = np.stack([column, row], axis=-1)
        own = np.zeros_like(solid)
        for ends in (self.sender_xy[senders], self.receiver_xy[receivers]):
            own |= (nearest == ends[:, None, :]).all(axis=-1)
        return (solid & ~own & ((offset**2).sum(axis=-1) < 1)).sum(axis=1)


def _bezier(corners: Float[np.ndarray, "E 4 2"], points: int) -> Float[np.ndarray, "E P 2"]:
    t = np.linspace(0, 1, points)
    weights = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=-1)
    return np.einsum("pc,ecx->epx", weights, corners)
