"""A circuit for programs that draw and analyse graphs: Graphviz DOT, GraphML and GEXF, with scores as weights.

An edge has its `score`, in the sign of this package (the change of the metric when it is cut), and as `weight` its size, since
layouts and centralities take no negative weights. Names of models, tasks and groups are a user's: they are escaped everywhere.
"""

from io import BytesIO
from pathlib import Path

import networkx as nx
import numpy as np
from jaxtyping import Float

from circuitdisc.circuit import Circuit
from circuitdisc.errors import BadSetting, tidy
from circuitdisc.files import write_bytes

GRAPH_ENDINGS = (".dot", ".gv", ".graphml", ".gexf")


def write_graph(path: str | Path, circuit: Circuit, scores: Float[np.ndarray, "R S"] | None = None) -> None:
    """Write a circuit as a graph, in the format that the file's ending names.

    Args:
        path: `.dot` or `.gv`, `.graphml`, `.gexf`.
        scores: of all edges, in the sign of this package; None leaves weights out.

    Raises:
        BadSetting: the ending is another, or a kept edge has no score.
        BadRun: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in GRAPH_ENDINGS:
        raise BadSetting(
            f"a graph is written as {', '.join(GRAPH_ENDINGS)}, by the ending of its name: {path} has none of these"
        )
    graph = scored_graph(circuit, scores)
    if path.suffix.lower() in (".dot", ".gv"):
        write_bytes(path, _dot(graph).encode())
        return
    written = BytesIO()
    if path.suffix.lower() == ".gexf":
        nx.write_gexf(graph, written)
    else:
        nx.write_graphml(graph, written, named_key_ids=True, edge_id_from_attribute="name")
    write_bytes(path, written.getvalue())


def scored_graph(circuit: Circuit, scores: Float[np.ndarray, "R S"] | None = None) -> nx.MultiDiGraph:
    """The circuit for networkx, with where it came from, groups of heads, and scores.

    Raises:
        BadSetting: a kept edge has no score.
    """
    graph = circuit.to_networkx()
    came = circuit.provenance
    about = {"model": came.model, "task": came.task, "algorithm": came.algorithm, "metric": came.metric}
    graph.graph.update({key: _line(value) for key, value in about.items() if value})
    graph.graph["name"] = _line(", ".join(value for value in (came.model, came.task) if value) or "circuit")
    for group, heads in circuit.groups.items():
        for head in heads:
            if head in graph:
                known = graph.nodes[head].get("group")
                graph.nodes[head]["group"] = _line(group) if known is None else f"{known}, {_line(group)}"
    if scores is None:
        return graph
    if scores.shape != circuit.mask.shape or not np.isfinite(scores[circuit.mask]).all():
        raise BadSetting("scores to write must be finite, with one for each edge of the circuit")
    for *_, data in graph.edges(data=True):
        score = float(scores[circuit.graph.parse_edge(data["name"])])
        data.update(score=score, weight=abs(score))
    return graph


def _line(text: object) -> str:
    """A user's words on a line, without the control characters that XML has no place for."""
    return tidy(" ".join(str(text).split()))


def _dot(graph: nx.MultiDiGraph) -> str:
    """Graphviz's language; nodes of a layer stand beside each other."""
    lines = [f"digraph {_quoted(graph.graph['name'])} {{", "  rankdir=BT;", "  node [shape=box];"]
    ranks: dict[tuple[int, str], list[str]] = {}
    for name, data in graph.nodes(data=True):
        own = {"tooltip": data["group"]} if "group" in data else {}
        lines.append(f"  {_quoted(name)}{_attributes({'kind': data['kind'], **own})};")
        ranks.setdefault((data["layer"], data["kind"]), []).append(name)
    lines += [f"  {{ rank=same; {'; '.join(map(_quoted, names))} }}" for names in ranks.values() if len(names) > 1]
    for sender, receiver, data in graph.edges(data=True):
        own = {key: data[key] for key in ("score", "weight") if key in data}
        lines.append(
            f"  {_quoted(sender)} -> {_quoted(receiver)}{_attributes({'label': data['input'], 'id': data['name'], **own})};"
        )
    return "\n".join([*lines, "}", ""])


def _attributes(values: dict[str, object]) -> str:
    return f" [{', '.join(f'{key}={_quoted(value)}' for key, value in values.items())}]"


def _quoted(value: object) -> str:
    r"""A quoted identifier: `"` and `\` are escaped, so that no `\N` of a user's is expanded."""
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
