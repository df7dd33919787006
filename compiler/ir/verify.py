"""IR -> what is wrong with it: the invariants that no single node can check."""

from __future__ import annotations

from attnc.compiler.ir import arrays as ar
from attnc.compiler.ir import expr as ex
from attnc.compiler.ir import pattern as pat
from attnc.compiler.ir import score as sc
from attnc.compiler.ir.blockmask import TILE_VARS, TOKEN_VARS, BlockMask, Tiling
from attnc.compiler.ir.gridmask import GridMask
from attnc.compiler.ir.plan import BackwardPlan, CpuPart, ForwardPlan, LoopPlan, Plan, TilePart
from attnc.dsl.diagnostics import Diagnostic

TRIAL_LENGTHS = ((1, 1), (33, 33), (50, 20), (20, 50))
"""Lengths at which a block mask is compared with its pattern (small: the comparison is dense)."""


MAX_TRIAL_PAIRS = 1 << 22
"""Most pairs at which the block mask of a grid is compared: its lengths are given."""


def verify(ir: pat.Pattern | BlockMask | GridMask | Plan) -> tuple[Diagnostic, ...]:
    """Return a diagnostic for each broken invariant; empty means sound.

    A block mask is also compared with its pattern's dense mask at a few small lengths, so this is
    for tests and checks by hand, not for every compilation.
    """
    match ir:
        case pat.Pattern():
            found = _pattern(ir)
        case BlockMask():
            found = _pattern(ir.pattern) + _block_mask(ir)
        case GridMask():
            found = _pattern(ir.pattern) + _grid_mask(ir)
        case Plan():
            found = list(verify(ir.cpu.block_mask)) + _loop(ir.forward)
            alike = (ir.forward.data is None) is (ir.cpu.data is None)
            if not alike and ir.forward.boxes is None:
                found.append(_broken("one executor tests tiles and the other does not"))
            found += _backward(ir.backward, ir.forward) if ir.backward is not None else []
            for own in ir.cpu.parts:
                found += verify(own.block_mask) if isinstance(own, CpuPart) else ()
            for kernel in ir.parts:
                found += _loop(kernel.loop) if isinstance(kernel, TilePart) else []
            if ir.cpu.boxes is not None:
                found += verify(ir.cpu.boxes)
                if ir.cpu.parts or ir.cpu.strips or ir.cpu.segments:
                    found.append(_broken("the executor has tiles beside its boxes"))
            if ir.cpu.parts and ir.cpu.strips:
                found.append(_broken("the executor has parts and strips beside them"))
    return tuple(found)


def _broken(message: str) -> Diagnostic:
    return Diagnostic(code="ATT0901", message=message, help="this is a fault of attnc: report it")


def _pattern(pattern: pat.Pattern) -> list[Diagnostic]:
    scores = [s for s in (pattern.score, pattern.sink) if s is not None]
    used = ex.free_vars(pattern.predicate).union(*map(sc.free_vars, scores))
    read = {r.name for r in ex.reads(pattern.predicate)}.union(*map(sc.reads, scores))
    known = {*pattern.extents, *pattern.sizes}
    for one in pattern.inputs:
        if one.formula is not None:
            read |= ar.needs(one.formula) - known
        known.add(one.name)
    stray = {*(used - TOKEN_VARS), *(read - known)}
    found = [_broken(f"pattern `{pattern.name}` uses unknown `{v}`") for v in sorted(stray)]
    if pattern.sink is not None and {"q", "k"} & sc.free_vars(pattern.sink):
        found.append(_broken(f"the sink of `{pattern.name}` depends on positions"))
    if pattern.heads is None and "h" in used:
        found.append(_broken(f"pattern `{pattern.name}` depends on `h` and has no heads"))
    return found


def _block_mask(mask: BlockMask) -> list[Diagnostic]:
    found: list[Diagnostic] = []
    for number, piece in enumerate(mask.pieces):
        bounds = ex.free_vars(piece.tiles.base) | ex.free_vars(piece.tiles.count)
        if bounds - TILE_VARS:
            found.append(_broken(f"bounds of piece {number} use token variables"))
        if ex.free_vars(piece.residual) - TOKEN_VARS:
            found.append(_broken(f"the residual of piece {number} uses tile variables"))
        if not 1 <= piece.tiles.run <= piece.tiles.period:
            found.append(_broken(f"piece {number} has run {piece.tiles.run} over its period"))
    if found:
        return found
    for nq, nk in TRIAL_LENGTHS:
        try:
            mask.grid(nq, nk)
            if not mask.pattern.is_static:  # without data there is nothing to compare
                continue
            same = bool((mask.dense(nq, nk) == mask.pattern.mask(nq, nk)).all())
        except AssertionError as error:
            return [_broken(str(error))]
        if not same:
            return [_broken(f"block mask and pattern differ at {nq} queries and {nk} keys")]
    return found


def _grid_mask(mask: GridMask) -> list[Diagnostic]:
    axes = range(mask.rank)
    of_tiles = {"h", *(f"qb_{axis}" for axis in axes)}
    of_tokens = {"h", *(f"{side}_{axis}" for side in "qk" for axis in axes)}
    found: list[Diagnostic] = []
    for number, piece in enumerate(mask.pieces):
        for tiles in piece.tiles:
            if (ex.free_vars(tiles.base) | ex.free_vars(tiles.count)) - of_tiles:
                found.append(_broken(f"bounds of piece {number} use token variables"))
            if not 1 <= tiles.run <= tiles.period:
                found.append(_broken(f"piece {number} has run {tiles.run} over its period"))
        if ex.free_vars(piece.residual) - of_tokens:
            found.append(_broken(f"the residual of piece {number} uses tile variables"))
    nq, nk = mask.pattern.lengths
    assert nq is not None
    assert nk is not None
    if found or nq * nk * (mask.pattern.heads or 1) > MAX_TRIAL_PAIRS:
        return found
    try:
        same = bool((mask.dense() == mask.pattern.mask(nq, nk)).all())
    except AssertionError as error:
        return [_broken(str(error))]
    return [] if same else [_broken(f"block mask and pattern differ at {nq} queries, {nk} keys")]


def _loop(loop: LoopPlan) -> list[Diagnostic]:
    found = list(verify(loop.block_mask))
    if loop.boxes is not None:
        found += verify(loop.boxes)
        if loop.form != "table" or loop.segments:
            found.append(_broken("a loop over boxes has ranges beside its table"))
        tokens = Tiling(loop.boxes.tiling.q, loop.boxes.tiling.k)
        if tokens != loop.tiling:
            found.append(_broken(f"boxes {loop.boxes.tiling} stand for tile {loop.tiling}"))
    worst = max((segment.mask for segment in loop.segments), default=0)
    if worst > len(loop.masks):
        found.append(_broken(f"a segment uses mask {worst} of {len(loop.masks)}"))
    if (loop.form == "data") is not (loop.data is not None):
        found.append(_broken(f"a plan of form {loop.form} does not go with its tests of tiles"))
    return found


def _backward(backward: BackwardPlan, forward: ForwardPlan) -> list[Diagnostic]:
    found: list[Diagnostic] = []
    for loop in backward.loops:
        found += _loop(loop)
        pattern = loop.block_mask.pattern
        if any(loop is one for one in backward.of_keys):
            pattern = pattern.transposed()
        if pattern != forward.block_mask.pattern:
            found.append(_broken("a loop of the backward is of another pattern"))
        if forward.data is not None and loop.data is None:
            found.append(_broken("the forward tests tiles and a loop of the backward does not"))
    return found
