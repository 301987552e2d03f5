"""Where the nodes of a computation graph stand in a drawing, and the curve that each edge takes.

One unit of x is a column (a head), one unit of y is a row (a layer). Row `l` holds the heads of layer `l`; the layer's MLP
stands in a column of its own at the right, a little higher, since it reads the heads beside it. Embeddings are in the row
below layer 0 and `logits` in the row above the last layer, so that every edge runs upwards or to the right.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from circuitdisc.graph import ComputationGraph, Node

# Pixels. Columns and rows shrink for large models and stop growing for small ones.
_WIDTH, _HEIGHT = 960.0, 1000.0
_COLUMN = (26.0, 78.0)
_ROW = (30.0, 104.0)
_NODE = (8.0, 38.0)
_MLP_GAP, _MLP_RISE = 0.4, 0.32  # columns right of the last head, rows above the heads of the layer
_LOGITS_RISE = 0.3


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
        self, receivers: Int[np.ndarray, "E"], senders: Int[np.ndarray, "E"], points: int
    ) -> Float[np.ndarray, "E P 2"]:
        """A cubic Bézier curve for each edge, as `points` points from sender to receiver."""
        start, end = self.sender_xy[senders].copy(), self.port_xy[receivers].copy()
        centre = self.receiver_xy[receivers]
        rise = end[:, 1] - start[:, 1]
        to_mlp = np.array([self.graph.receivers[r].kind == "mlp" for r in receivers], dtype=bool)
        same_column = np.isclose(start[:, 0], centre[:, 0])

        first, second = start.copy(), end.copy()  # the two control points: leave upwards, arrive upwards
        first[:, 1] += 0.4 * rise
        second[:, 1] -= 0.4 * rise

        into_mlp = to_mlp & ~same_column  # arrive from the left
        second[into_mlp, 1] = end[into_mlp, 1]
        second[into_mlp, 0] = end[into_mlp, 0] - np.minimum(1.0, 0.5 * (end - start)[into_mlp, 0])

        among_mlps = to_mlp & same_column  # arcs at the right of the column, wider the longer they are
        for array in (start, end):
            array[among_mlps, 0] = self.mlp_x + self.radius_x
        bulge = np.minimum(0.35 + 0.16 * rise, 1.9)[among_mlps]
        first[among_mlps] = start[among_mlps] + np.stack([bulge, np.zeros_like(bulge)], axis=-1)
        second[among_mlps] = end[among_mlps] + np.stack([bulge, np.zeros_like(bulge)], axis=-1)

        past_heads = same_column & ~to_mlp & (rise > 1)  # around the heads that stand between the two
        first[past_heads, 0] += 0.55
        second[past_heads, 0] += 0.55

        t = np.linspace(0, 1, points)[None, :, None]
        weights = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
        corners = start, first, second, end
        return sum((w * c[:, None, :] for w, c in zip(weights, corners, strict=True)), np.zeros((1, 1, 1)))
