"""Which parameters a loss reaches, where autograd does not tell.

The backward pass of a compiled network gives zeros for parameters that a loss does not reach, where autograd gives
None. The difference matters: weight decay and momentum move a parameter whose gradient is zero, and leave one without a
gradient alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

# An autograd node, and which of its outputs.
Edge = tuple[Any, int]


def reachable_leaf_ids(value: Tensor, known: Mapping[Edge, frozenset[int]] | None = None) -> frozenset[int]:
    """Return the `id` of every leaf that a backward pass from `value` reaches.

    Args:
        value: where the backward pass starts.
        known: the leaves behind some edges; the graph is not followed beyond these.
    """
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
    """Which parameters each loss reaches, looked up once for each phase of the method.

    Args:
        parameters: those that the optimizer steps.
        outputs: for each output of the network (logits, then taps) the leaves that lead to it, as `reachable_leaf_ids`
            found them in the network before it was compiled.
    """

    def __init__(self, parameters: Sequence[Tensor], outputs: Sequence[frozenset[int]]) -> None:
        self.parameter_ids, self.outputs = [id(parameter) for parameter in parameters], outputs
        self._masks: dict[int, list[tuple[bool, ...]]] = {}

    def masks(self, phase: int, losses: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[tuple[bool, ...]]:
        """Return for each loss whether it reaches each parameter.

        Args:
            phase: of the method; another phase computes other losses.
            losses: scalars.
            outputs: the compiled network's logits and taps, from which the losses were computed.
        """
        if phase not in self._masks:
            known = {
                (value.grad_fn, value.output_nr): ids
                for value, ids in zip(outputs, self.outputs, strict=True)
                if value.grad_fn is not None
            }
            reached = [reachable_leaf_ids(loss, known) for loss in losses]
            self._masks[phase] = [tuple(own in ids for own in self.parameter_ids) for ids in reached]
        return self._masks[phase]
