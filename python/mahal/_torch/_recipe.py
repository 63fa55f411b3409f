"""How a kernel becomes a differentiable torch op.

Every op is registered twice. The raw op has the kernel, its fake form and its rule under vmap. The
twin is the same with a gradient, for torch.compile, which cannot trace an autograd.Function that
has a tangent of its own. In eager mode an autograd.Function takes the twin's place, since an op
with a registered gradient fails under torch.func and loses tangents silently. Where nothing asks
for any of that, the kernel is called without torch in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import torch
from torch.autograd import forward_ad

Tensor: TypeAlias = Any
Tensors: TypeAlias = tuple[Any, ...]
Constants: TypeAlias = dict[str, Any]
Forward: TypeAlias = Callable[..., Any]
VmapRule: TypeAlias = Callable[[Forward, int, Tensors, Tensors, Constants], tuple[Any, Any]]

_LIBRARY = torch.library.Library("mahal", "FRAGMENT")
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _as_tuple(value: Any) -> Tensors:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _in_full_precision(tensors: Sequence[Tensor]) -> AbstractContextManager[Any]:
    """Autocast off: what is written in torch must not multiply in half precision."""
    kind = next(t.device.type for t in tensors if t is not None)
    off: AbstractContextManager[Any] = torch.autocast(kind, enabled=False)
    return off if torch.is_autocast_enabled(kind) else nullcontext()


def _in_memory(tensor: Tensor) -> Tensor:
    """The tensor without what torch has put off."""
    if tensor is None:
        return None
    if tensor._is_zerotensor():
        tensor = tensor.clone()
    return tensor.resolve_conj().resolve_neg()


def wanted(*arrays: Any) -> bool:
    """Whether tensors need more than the kernel: a gradient, a transform or a graph."""
    if torch.compiler.is_compiling():
        return True
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    if forward_ad._current_level >= 0:
        return True
    tensors = [a for a in arrays if isinstance(a, torch.Tensor)]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return True
    return any(type(t) not in _PLAIN for t in tensors)


def _loop(
    call: Forward, size: int, in_dims: Tensors, tensors: Tensors, constants: Constants
) -> tuple[Any, Any]:
    """One call for every slice of the mapped axis."""
    results = []
    for k in range(size):
        part = [
            t if dim is None else t.select(dim, k) for t, dim in zip(tensors, in_dims, strict=True)
        ]
        results.append(call(*part, **constants))
    if isinstance(results[0], torch.Tensor):
        return torch.stack(results), 0
    stacked = tuple(torch.stack(column) for column in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def folded(cores: Sequence[int | None], outputs: Sequence[bool] = (True,)) -> VmapRule:
    """Rule under vmap of an op that takes leading axes: one call with the mapped axis in front.

    Parameters
    ----------
    cores : sequence of int or None
        For each tensor argument the number of its last axes that one item has; None for an
        argument without leading axes. Where such an argument is mapped, the calls are made one
        by one. Leading axes must broadcast in the op.
    outputs : sequence of bool
        For each output whether it has the leading axes.
    """

    def rule(
        call: Forward, size: int, in_dims: Tensors, tensors: Tensors, constants: Constants
    ) -> tuple[Any, Any]:
        pairs = list(zip(cores, in_dims, tensors, strict=True))
        if any(core is None and dim is not None for core, dim, _ in pairs):
            return _loop(call, size, in_dims, tensors, constants)
        ranks = [
            t.ndim - core - (dim is not None)
            for core, dim, t in pairs
            if core is not None and t is not None
        ]
        moved = []
        for core, dim, t in pairs:
            if core is None or dim is None:
                moved.append(t)
                continue
            front = t.movedim(dim, 0)
            missing = max(ranks) - (t.ndim - core - 1)
            moved.append(front.reshape(front.shape[0], *([1] * missing), *front.shape[1:]))
        result = call(*moved, **constants)
        dims = tuple(0 if leads else None for leads in outputs)
        return result, (dims[0] if isinstance(result, torch.Tensor) else dims)

    return rule


class DifferentiableOp:
    """What `define` makes: called with tensors by position and constants by name."""

    def __init__(
        self,
        name: str,
        schema: str,
        forward: Forward,
        fake: Forward,
        save: Callable[[Tensors, Tensors], Tensors] | None,
        backward: Callable[[Tensors, Constants, Tensors, Tensors], Tensors] | None,
        jvp: Callable[[Tensors, Constants, Tensors], Tensors] | None,
        vmap: VmapRule,
    ) -> None:
        self.name = name
        self._forward = forward
        self._save = save
        self._backward = backward
        self._jvp = jvp
        self._fake = fake
        self._rule = vmap
        self.raw = self._register(name, schema, fake)
        self.twin = self._register(f"{name}_autograd", schema, fake)
        arguments = self.raw._schema.arguments
        self._count = sum(not a.kwarg_only for a in arguments)
        self._constants = {a.name: a.default_value for a in arguments if a.kwarg_only}
        if backward is not None:
            torch.library.register_autograd(
                f"mahal::{name}_autograd",
                self._backward_of_twin,
                setup_context=self._setup_twin,
                lib=_LIBRARY,
            )
            self._function = self._make_function()

    def __call__(self, *tensors: Tensor, **constants: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.twin(*tensors, **constants)
        if not wanted(*tensors):
            return self._forward(*(_in_memory(t) for t in tensors), **constants)
        differentiable = self._backward is not None
        if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() == 0:
            if differentiable:
                values = {**self._constants, **constants}
                return self._function.apply(*tensors, *values.values())
            return self.raw(*tensors, **constants)
        return (self.twin if differentiable else self.raw)(*tensors, **constants)

    def _register(self, name: str, schema: str, fake: Forward) -> Any:
        _LIBRARY.define(name + schema)
        for key in ("CPU", "CUDA"):
            _LIBRARY.impl(name, self._forward, key)
        torch.library.register_fake(f"mahal::{name}", fake, lib=_LIBRARY)
        op = getattr(torch.ops.mahal, name).default

        def rule(info: Any, in_dims: Tensors, *tensors: Tensor, **constants: Any) -> Any:
            dims = tuple(in_dims)[: len(tensors)]
            return self._vmap(op, info.batch_size, dims, tensors, constants)

        torch.library.register_vmap(f"mahal::{name}", rule, lib=_LIBRARY)
        return op

    def _vmap(
        self, call: Forward, size: int, in_dims: Tensors, tensors: Tensors, constants: Constants
    ) -> tuple[Any, Any]:
        if size > 0:
            return self._rule(call, size, in_dims, tensors, constants)
        # A map over nothing has the shapes and dtypes of one item.
        item = (
            t if dim is None else t.new_empty(t.movedim(dim, 0).shape[1:])
            for t, dim in zip(tensors, in_dims, strict=True)
        )
        shapes = self._fake(*item, **constants)
        empty = tuple(t.new_empty((0, *t.shape)) for t in _as_tuple(shapes))
        return (empty[0], 0) if isinstance(shapes, torch.Tensor) else (empty, (0,) * len(empty))

    def _gradients(
        self, saved: Tensors, constants: Constants, grads: Tensors, needs: Tensors
    ) -> Tensors:
        assert self._backward is not None
        if all(g is None for g in grads):
            return (None,) * self._count
        with _in_full_precision(grads):
            return _as_tuple(self._backward(saved, constants, grads, needs))

    def _setup_twin(
        self, ctx: Any, inputs: Tensors, keyword_only_inputs: Constants, output: Any
    ) -> None:
        assert self._save is not None
        ctx.save_for_backward(*self._save(tuple(inputs), _as_tuple(output)))
        ctx.constants = dict(keyword_only_inputs)
        ctx.set_materialize_grads(False)

    def _backward_of_twin(self, ctx: Any, *grads: Tensor) -> Tensors:
        needs = tuple(ctx.needs_input_grad)[: self._count]
        return self._gradients(ctx.saved_tensors, ctx.constants, grads, needs)

    def _make_function(self) -> Any:
        op = self

        def split(inputs: Tensors) -> tuple[Tensors, Constants]:
            return inputs[: op._count], dict(zip(op._constants, inputs[op._count :], strict=True))

        def forward(*inputs: Any) -> Any:
            tensors, constants = split(inputs)
            return op.raw(*tensors, **constants)

        def setup_context(ctx: Any, inputs: Tensors, output: Any) -> None:
            assert op._save is not None
            tensors, ctx.constants = split(inputs)
            outputs = _as_tuple(output)
            saved = op._save(tensors, outputs)
            ctx.save_for_backward(*saved)
            ctx.save_for_forward(*saved)
            ctx.set_materialize_grads(False)
            exact = [t for t in outputs if not (t.is_floating_point() or t.is_complex())]
            if exact:
                ctx.mark_non_differentiable(*exact)

        def backward(ctx: Any, *grads: Tensor) -> Tensors:
            needs = tuple(ctx.needs_input_grad)[: op._count]
            found = op._gradients(ctx.saved_tensors, ctx.constants, grads, needs)
            return *found, *(None for _ in op._constants)

        def jvp(ctx: Any, *tangents: Tensor) -> Any:
            if op._jvp is None:
                raise RuntimeError(f"{op.name}: must be used in reverse mode, got tangents")
            given = tangents[: op._count]
            with _in_full_precision(given):
                found = _as_tuple(op._jvp(ctx.saved_tensors, ctx.constants, given))
            return found if len(found) > 1 else found[0]

        def vmap(info: Any, in_dims: Tensors, *inputs: Any) -> Any:
            tensors, constants = split(inputs)
            return op._vmap(op, info.batch_size, in_dims[: op._count], tensors, constants)

        methods = (forward, setup_context, backward, jvp, vmap)
        body = {method.__name__: staticmethod(method) for method in methods}
        return type(self.name, (torch.autograd.Function,), body)


def define(
    name: str,
    schema: str,
    *,
    forward: Forward,
    fake: Forward,
    save: Callable[[Tensors, Tensors], Tensors] | None = None,
    backward: Callable[[Tensors, Constants, Tensors, Tensors], Tensors] | None = None,
    jvp: Callable[[Tensors, Constants, Tensors], Tensors] | None = None,
    vmap: VmapRule = _loop,
) -> DifferentiableOp:
    """Register a kernel as ``torch.ops.mahal.NAME``.

    Parameters
    ----------
    name : str
    schema : str
        Tensors first, then ``*`` and the constants, each with a default: "(Tensor x, Tensor mean,
        *, int threads=0) -> (Tensor, Tensor)".
    forward : callable
        ``forward(*tensors, **constants)`` runs the kernel on plain tensors of any strides, without
        pending conjugation. It neither returns nor changes its inputs.
    fake : callable
        The same on tensors that have no memory: shapes and dtypes only.
    save : callable, optional
        ``save(tensors, outputs)`` to a tuple of tensors and None; called when a gradient or tangent
        is wanted. Outputs are a tuple even where there is one. It may hold inputs and outputs only.
    backward : callable, optional
        ``backward(saved, constants, grads, needs)`` to one gradient or None for each tensor
        argument; without it the op has no gradient. Gradients of outputs that nothing depends on
        are None. It calls ops that are differentiable themselves where a second derivative is
        wanted.
    jvp : callable, optional
        ``jvp(saved, constants, tangents)`` to the tangents of the outputs, a tuple where there are
        several; the tangent of an argument may be None.
    vmap : callable, optional
        ``vmap(call, size, in_dims, tensors, constants)`` to outputs and their mapped axes; made by
        `folded` for ops with leading axes. The default calls once for every slice.
    """
    return DifferentiableOp(name, schema, forward, fake, save, backward, jvp, vmap)


def _differentiable_part(
    plain: Forward, tensors: Tensors, constants: Constants
) -> tuple[list[int], Tensors, Forward]:
    """Places and values of the tensors that a derivative can be taken for, and the function."""
    places = [
        k
        for k, t in enumerate(tensors)
        if t is not None and (t.is_floating_point() or t.is_complex())
    ]

    def function(*chosen: Tensor) -> Tensors:
        every = list(tensors)
        for place, tensor in zip(places, chosen, strict=True):
            every[place] = tensor
        return _as_tuple(plain(*every, **constants))

    return places, tuple(tensors[k] for k in places), function


def gradients_of(
    plain: Forward, tensors: Tensors, constants: Constants, grads: Tensors, needs: Tensors
) -> Tensors:
    """Gradients of a function that is written in torch; None where not needed."""
    places, chosen, function = _differentiable_part(plain, tensors, constants)
    outputs, pull = torch.func.vjp(function, *chosen)
    seeds = tuple(
        torch.zeros_like(o) if g is None else g for o, g in zip(outputs, grads, strict=True)
    )
    found = dict(zip(places, pull(seeds), strict=True))
    return tuple(found.get(k) if needed else None for k, needed in enumerate(needs))


def tangents_of(
    plain: Forward, tensors: Tensors, constants: Constants, tangents: Tensors
) -> Tensors:
    """Tangents of the outputs of a function that is written in torch."""
    places, chosen, function = _differentiable_part(plain, tensors, constants)
    seeds = tuple(
        torch.zeros_like(t) if tangents[k] is None else tangents[k]
        for k, t in zip(places, chosen, strict=True)
    )
    # The transpose of the transpose, since forward mode does not nest.
    outputs, pull = torch.func.vjp(function, *chosen)
    _, push = torch.func.vjp(lambda *grads: pull(grads), *(torch.zeros_like(o) for o in outputs))
    return _as_tuple(push(seeds))


def define_backward(
    name: str,
    schema: str,
    *,
    forward: Forward,
    fake: Forward,
    plain: Forward,
    vmap: VmapRule = _loop,
) -> DifferentiableOp:
    """`define` for the kernel of a gradient, whose own derivatives are left to torch.

    Parameters
    ----------
    plain : callable
        ``plain(*tensors, **constants)`` is what the kernel computes, as differentiable torch
        operations. It runs for second derivatives only.
    name, schema, forward, fake, vmap
        As for `define`.
    """

    return define(
        name,
        schema,
        forward=forward,
        fake=fake,
        save=lambda tensors, outputs: tensors,
        backward=partial(gradients_of, plain),
        jvp=partial(tangents_of, plain),
        vmap=vmap,
    )
