"""Zoo name and published parameters -> what attnc says, in the shape the published arrays have.

Works for any parameters, by the public path: what the pattern declares as a parameter or an input
is given by name, ``n`` is the length where it is neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnc.compiler import driver
from attnc.compiler.loaded import Loaded
from attnc.dsl import nodes as ast
from attnc.dsl.resolve import stdlib_module

Declared = dict[str, ast.Param | ast.Input]


def dense(pattern: str, params: Mapping[str, Any]) -> NDArray[Any]:
    """Return what the oracle says: a mask, or the values of a score or a function.

    Shape: ``[nq, nk]``, with a head axis in front where the pattern declares heads, and an axis of
    layers before that where it declares layers. A function has the shape of its arguments.
    """
    module = stdlib_module(pattern)
    if pattern in module.own.fns:
        return _function(module.own.fns[pattern].item, params)
    loaded, length = _loaded(pattern, params)
    if isinstance(loaded.named.item, ast.Score):
        scores = loaded.scores(length, length)
        return _shaped(loaded, scores.values.astype(np.int64) if scores.is_whole else scores.values)
    return _shaped(loaded, loaded(length, length))


def dense_ir(pattern: str, params: Mapping[str, Any]) -> NDArray[Any]:
    """Return what the pattern IR evaluates to: a mask, or the values of a score."""
    loaded, length = _loaded(pattern, params)
    *layers, _, _, _ = loaded.shape(length, length)
    if layers:
        return np.stack([_by_ir(loaded.at_layer(i), length) for i in range(layers[0])])
    return _by_ir(loaded, length)


def _by_ir(loaded: Loaded, length: int | None) -> NDArray[Any]:
    nq, nk, data = loaded.data(length, length)
    if not isinstance(loaded.named.item, ast.Score):
        return _shaped(loaded, loaded.ir.mask(nq, nk, data))
    return _shaped(loaded, loaded.ir.scores(nq, nk, data))


def _loaded(pattern: str, params: Mapping[str, Any]) -> tuple[Loaded, int | None]:
    """Return the pattern with its parameters, and the length where ``n`` is one."""
    module = stdlib_module(pattern)
    own = module.own
    item = (own.patterns.get(pattern) or own.attentions.get(pattern) or own.scores[pattern]).item
    declared: Declared = {p.name: p for p in (*module.params, *module.inputs, *item.params)}
    given: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            given |= _columns(name, value)
        elif value is not None:
            given[name] = _nested(value, declared.get(name))
    if given.get("extra_keys") == 0 and "extra_keys" not in declared:
        del given["extra_keys"]
    length = None if "n" in declared else given.pop("n", None)
    return driver.loaded_zoo(pattern, given), length


def _nested(value: Any, declared: ast.Param | ast.Input | None) -> Any:
    """Wrap one value, or one list, where a list of these is declared: the same for all."""
    if not isinstance(declared, ast.Param):
        return value
    wanted, found = _depth(declared.type), np.ndim(value) if _is_regular(value) else 2
    for _ in range(wanted - found):
        value = [value]
    return value


def _depth(kind: ast.Type) -> int:
    return 0 if kind.item is None else 1 + _depth(kind.item)


def _is_regular(value: Any) -> bool:
    return not isinstance(value, list) or len({np.shape(item) for item in value}) <= 1


def _columns(name: str, rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Turn ``rules=[{"q": 0, "mask": "a_shape", "args": {...}}]`` into one list for each key.

    ``mask`` and ``args`` become the text of a reference; nothing (any) becomes -1.
    """
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for key, value in row.items():
            if key == "args":
                continue
            if isinstance(value, str):
                value = _reference(value, row.get("args") or {})
            columns.setdefault(f"{name}_{key}", []).append(-1 if value is None else value)
    return columns


def _reference(pattern: str, args: Mapping[str, Any]) -> str:
    """Return ``a_shape(n_init: 4)``; the length is no argument."""
    params = {p.name for p in stdlib_module(pattern).patterns[pattern].pattern.params}
    shown = [f"{n}: {_text(v)}" for n, v in args.items() if n in params]
    return f"{pattern}({', '.join(shown)})" if shown else pattern


def _function(fn: ast.Fn, params: Mapping[str, Any]) -> NDArray[Any]:
    """Evaluate a function of real or integer arguments, element by element, through a score."""
    arrays = {n: np.asarray(v) for n, v in params.items() if np.ndim(v)}
    shape = np.broadcast_shapes(*(a.shape for a in arrays.values()))
    flat = {f"x_{n}": np.broadcast_to(a, shape).ravel() for n, a in arrays.items()}
    kinds = {p.name: p.type.kind for p in fn.params}
    inputs = [f"input x_{n}: {kinds[n]}[size]" for n in arrays]
    args = [f"{n}: x_{n}[q]" if n in arrays else f"{n}: {_text(v)}" for n, v in params.items()]
    text = (
        f"score table({', '.join(inputs)}) on grid(i: size) -> grid(j: 1) = "
        f"{{ q -> k : {fn.name}({', '.join(args)}) }}"
    )
    scores = driver.scores_text(text, None, flat, extents={"size": int(np.prod(shape))})
    return scores.values.reshape(shape)


def _text(value: Any) -> str:
    """Return a value as it is written in a file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return str(value)


def _shaped(loaded: Loaded, found: NDArray[Any]) -> NDArray[Any]:
    """Drop the head axis of a pattern that declares no heads, the others of a list of heads."""
    if isinstance(loaded.named.item, ast.Score) and found.shape[1:] == (1, 1):
        return found[:, 0, 0]
    heads = loaded.named.item.heads or loaded.named.module.heads
    return found if heads is not None else found[..., 0, :, :]
