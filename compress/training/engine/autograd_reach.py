"""Which parameters a loss reaches, where autograd does not say: a compiled network's backward pass gives zeros for what a loss does not reach.

Zeros are not nothing: weight decay and momentum move a parameter with a gradient of zeros, and leave one without a gradient alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

Edge = tuple[Any, int]  # an autograd node and which of its outputs


def reachable_leaf_ids(value: Tensor, known: Mapping[Edge, frozenset[int]] | None = None) -> frozenset[int]:
    """The `id` of every leaf that a backward pass from `value` comes to. `known`: what lies behind an edge; the graph is not followed there."""
    if value.grad_fn is None:
        return frozenset({id(value)} if value.requires_grad else ())
    known = known or {}
    found: set[int] = set()
    edges: list[Edge] = [(value.grad_fn, value.output_nr)]
    seen = set(edges)
    while edges:
        edge = edges.pop()
        node = edge[0]
        if edge in known:
            found |= known[edge]
        elif hasattr(node, "variable"):
            found.add(id(node.variable))
        elif node is not None:
            new = set(node.next_functions) - seen
            seen |= new
            edges += new
    return frozenset(found)


class ReachableParameters:
    """Of each loss the parameters that it reaches, looked up once a phase of the method.

    `outputs`: what leads to each of the network's outputs (logits, then the taps), as `reachable_leaf_ids` found it in the network as it is.
    """

    def __init__(self, parameters: Sequence[Tensor], outputs: Sequence[frozenset[int]]) -> None:
        self.places, self.outputs = [id(parameter) for parameter in parameters], outputs
        self._known: dict[int, list[tuple[bool, ...]]] = {}

    def masks(self, phase: int, losses: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[tuple[bool, ...]]:
        """Of each loss whether it reaches each parameter; `outputs`: the compiled network's, of which the losses were made."""
        if phase not in self._known:
            known = {
                (value.grad_fn, value.output_nr): ids
                for value, ids in zip(outputs, self.outputs, strict=True)
                if value.grad_fn is not None
            }
            reached = [reachable_leaf_ids(loss, known) for loss in losses]
            self._known[phase] = [tuple(place in ids for place in self.places) for ids in reached]
        return self._known[phase]
