"""What members ask on their ways, answered for many at once: the state at a point, the Hessian there, the ends of its spectrum.

A question has a `key`; those of one key are answered together. An answer is an exception where a question has none.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mdsens.common.errors import InputError
from mdsens.equilibrium.descent import PROBLEM
from mdsens.equilibrium.together.member import Member
from mdsens.mechanics import batches
from mdsens.mechanics.assembly import Listed, dense_blocks, with_strain
from mdsens.mechanics.batches import Stack, shaped_together
from mdsens.mechanics.dense_system import DenseSystem, dense_systems, spectra_of
from mdsens.mechanics.evaluation import by_unknown, condition_from, norm_of
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.programs import Slopes
from mdsens.mechanics.spectrum import Spectrum, counts_unused_places
from mdsens.mechanics.unknown import Reference, as_unknown
from mdsens.solvers import LBFGS
from mdsens.solvers.driver import Descended, descend_traced
from mdsens.solvers.host_lbfgs import Flat, Point
from mdsens.structures.neighbors.search import Pairs

KEPT_STACKS = 8
"""Stacks that a thread keeps, since the same structures often ask again."""

_local = threading.local()


class State(NamedTuple):
    """A point at which the energy is known, with its slopes."""

    point: Point
    slopes: Slopes


class StateAt(NamedTuple):
    """The question for the `State` at z."""

    member: Member
    flat: Flat

    @property
    def key(self) -> Any:
        return StateAt, self.member.kind


class DescentFrom(NamedTuple):
    """The question for the end of a solver's steps at a fixed cell, compiled: `(its state, steps, status code)`.

    Attributes:
        begun: the solver's state, `solver_state` or one that a list has ended.
        tolerance: the largest force to go down to [eV/Å].
        max_steps: at most.
    """

    member: Member
    begun: Any
    solver: LBFGS
    tolerance: float
    max_steps: int

    @property
    def key(self) -> Any:
        return DescentFrom, self.member.kind, self.solver, self.member.listed.key


class HessianAt(NamedTuple):
    """The question for the `DenseSystem` at a state whose list is tight; None where it is not positive."""

    member: Member
    state: State

    @property
    def key(self) -> Any:
        return HessianAt, self.member.kind, self.member.listed.key


class SpectrumOf(NamedTuple):
    """The question for the `Spectrum` of a minimum; None where it is too soft for that to be certain."""

    dense: DenseSystem

    @property
    def key(self) -> Any:
        return SpectrumOf, self.dense.matrix.shape, self.dense.basis.shape


class DerivativesAt(NamedTuple):
    """The question for `(F, ∂F/∂θ for all parameters (k, n), ∂F/∂z)` at z."""

    member: Member
    flat: Flat

    @property
    def key(self) -> Any:
        return DerivativesAt, self.member.kind


Answer = Any


def answer(questions: Sequence[Any]) -> list[Answer]:
    """Return the answers to questions of one key."""
    by_kind: dict[type, Callable[[Any], list[Answer]]] = {
        StateAt: _states,
        DescentFrom: _descents,
        HessianAt: _hessians,
        SpectrumOf: _spectra,
        DerivativesAt: _derivatives,
    }
    return by_kind[type(questions[0])](questions)


def _states(questions: Sequence[StateAt]) -> list[State | Exception]:
    members = [question.member for question in questions]
    placed = [question.member.placed(question.flat) for question in questions]
    positions = np.stack([system.positions for system in placed])
    answers: list[Any] = _list_again(members, placed, positions)
    for chosen in _groups(members, answers):
        slopes = _slopes([members[k] for k in chosen], [placed[k] for k in chosen], batches.slopes, batches.slopes_and_stress)
        for row, k in enumerate(chosen):
            answers[k] = _state(members[k], questions[k].flat, jax.tree.map(lambda leaf, row=row: leaf[row], slopes))
    return answers


def _groups(members: Sequence[Member], errors: Sequence[Any]) -> list[list[int]]:
    """Return the numbers of members without an error whose lists are of one shape."""
    groups: dict[Any, list[int]] = {}
    for k, member in enumerate(members):
        if errors[k] is None:
            groups.setdefault(member.listed.key, []).append(k)
    return list(groups.values())


def _slopes(members: Sequence[Member], placed: Sequence[Any], at_fixed_cell: Any, at_free_cell: Any) -> Any:
    """Return what one of two functions gives, whose results are slopes, for the atoms that members have."""
    free, n = members[0].freedom is not None, len(members[0].held)
    positions = np.stack([system.positions for system in placed])
    cells = np.stack([system.cell for system in placed]) if free else None
    found = _stack(members).results(at_free_cell if free else at_fixed_cell, positions, cells)
    is_slopes = lambda node: isinstance(node, Slopes)  # noqa: E731
    return jax.tree.map(lambda part: part._replace(positions=part.positions[..., :n, :]), found, is_leaf=is_slopes)


def _state(member: Member, flat: Flat, slopes: Slopes) -> State:
    if member.freedom is None:
        gradient = np.where(member.held, 0.0, slopes.positions)
        return State(Point(flat, gradient.ravel(), float(np.sqrt((gradient * gradient).sum(axis=1).max()))), slopes)
    residual = condition_from(slopes, member.unknown(flat), member.reference)
    return State(Point(flat, np.concatenate([residual.positions.ravel(), residual.strain]), norm_of(residual)), slopes)


def _derivatives(questions: Sequence[DerivativesAt]) -> list[Any]:
    members = [question.member for question in questions]
    placed = [question.member.placed(question.flat) for question in questions]
    answers: list[Any] = _list_again(members, placed, np.stack([system.positions for system in placed]))
    for chosen in _groups(members, answers):
        some, there = [members[k] for k in chosen], [placed[k] for k in chosen]
        slopes, along = _slopes(some, there, batches.slopes_by_parameters, batches.slopes_and_stress_by_parameters)
        states, rows = [], []
        for row, k in enumerate(chosen):
            own, by_parameters = jax.tree.map(lambda leaf, row=row: leaf[row], (slopes, along))
            states.append(_state(members[k], questions[k].flat, own))
            changes = by_unknown(by_parameters, members[k].unknown(questions[k].flat), members[k].reference)
            parts = [changes] if members[k].freedom is None else [changes.positions, changes.strain]
            rows.append(np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1))
        matrices = _matrices(some, states, there)[0]
        for k, *answer in zip(chosen, (state.point.gradient for state in states), rows, matrices, strict=True):
            answers[k] = tuple(answer)
    return answers


def _list_again(members: Sequence[Member], placed: Sequence[Any], positions: np.ndarray) -> list[Any]:
    """Make new lists where atoms have moved too far; return an exception for each member that has none, else None."""
    errors: list[Any] = [None] * len(members)
    found: dict[int, tuple[Pairs, float]] = {}
    for k in map(int, np.flatnonzero(_moved_too_far(members, positions))):
        try:
            pairs = members[k].pairs_at(placed[k])
        except InputError as error:  # of this member alone: the others have their lists
            errors[k] = error
            continue
        if pairs is None:
            continue
        found[k] = pairs
        if not members[k].has_list:
            like = next((member.listed for member in members if member.has_list), None)
            members[k].take_list(members[k].first_list(*pairs, like), positions[k], pairs[1])
    if found:
        chosen = list(found)
        likes, reaches = [members[k].listed for k in chosen], [found[k][1] for k in chosen]
        ranges = [members[k].range for k in chosen]
        lists = shaped_together(likes, positions[chosen], [found[k][0] for k in chosen], reaches, ranges, members[0].spare)
        for k, listed, reach in zip(chosen, lists, reaches, strict=True):
            members[k].take_list(listed, positions[k], reach)
    return errors


def _moved_too_far(members: Sequence[Member], positions: np.ndarray) -> np.ndarray:
    """Return which members need another list."""
    room = np.array([member.room for member in members])
    known = room >= 0.0
    stale = ~known
    if known.any():
        before = np.stack([member.listed_at for member, has in zip(members, known, strict=True) if has])
        moved = positions[known] - before
        stale[known] = (moved * moved).sum(axis=2).max(axis=1) > room[known] ** 2
    return stale


def solver_state(member: Member, solver: LBFGS, point: Point) -> Any:
    """Return the state in which a solver starts from a point, for as many atoms as the member is filled up to."""
    shape = member.listed.leaves[0].shape
    full = [np.zeros(shape), np.zeros(shape)]
    for whole, part in zip(full, (point.z, point.gradient), strict=True):
        whole[: len(member.held)] = part.reshape(member.held.shape)
    return _first_state(solver, shape)._replace(z=full[0], residual=full[1])


@functools.cache
def _first_state(solver: LBFGS, shape: tuple[int, ...]) -> Any:
    return jax.tree.map(np.asarray, solver.start(np.zeros(shape), np.zeros(shape)))


def _descents(questions: Sequence[DescentFrom]) -> list[tuple[Any, int, int]]:
    begun = jax.tree.map(lambda *leaves: np.stack(leaves), *(question.begun for question in questions))
    limits = (np.array([question.tolerance for question in questions]), np.array([question.max_steps for question in questions]))
    members = [question.member for question in questions]
    positions = begun.z[:, : len(members[0].held)]
    found = _stack(members).results(_descent_by(questions[0].solver), positions, None, begun, *limits)
    states = [jax.tree.map(lambda leaf, k=k: leaf[k], found.state) for k in range(len(questions))]
    return [(state, int(steps), int(code)) for state, steps, code in zip(states, found.steps, found.code, strict=True)]


@functools.cache
def _descent_by(solver: LBFGS) -> Any:
    """Return a function for `Stack.results`: the descent by a solver with a list that is not renewed."""

    def descend(system: Any, potential: Any, begun: Any, tolerance: Any, max_steps: Any) -> Descended:
        data: Any = Landscape(Reference(system, None), potential)  # type: ignore[arg-type]  # motions are of no account
        return descend_traced(PROBLEM, solver, begun, data, tolerance=tolerance, max_steps=max_steps)

    return descend


def _hessians(questions: Sequence[HessianAt]) -> list[DenseSystem | None]:
    members, states = [question.member for question in questions], [question.state for question in questions]
    matrices, sound = _matrices(members, states, [member.placed(state.point.z) for member, state in questions])
    if not sound:
        return [None] * len(members)
    positions = np.stack([as_unknown(member.unknown(state.point.z)).positions for member, state in questions])
    held = np.stack([member.held for member in members])
    return dense_systems(positions, [member.reference for member in members], held, matrices)


def _matrices(members: Sequence[Member], states: Sequence[State], placed: Sequence[Any]) -> tuple[np.ndarray, bool]:
    """Return `(∂F/∂z of each member, whether no energy counts places of a list that are not used)`."""
    free, n = members[0].freedom is not None, len(members[0].held)
    positions = np.stack([system.positions for system in placed])
    cells = np.stack([system.cell for system in placed]) if free else None
    stack = _stack(members)
    stored = jax.tree.map(lambda leaf: leaf[..., :n], stack.results(batches.stiffness, positions, cells))
    lists = stack.neighbors(n)
    matrices, held = dense_blocks(Listed(stored, lists)), np.stack([member.held for member in members])
    if free:
        whole = []
        for k, (member, state) in enumerate(zip(members, states, strict=True)):
            own = Listed(*jax.tree.map(lambda leaf, k=k: leaf[k], (stored, lists)))
            z = member.unknown(state.point.z)
            whole.append(with_strain(matrices[k], z, member.reference, placed[k], own, state.slopes.positions))
        matrices = np.stack(whole)
    elif held.any():
        matrices = np.where(held.reshape(len(members), -1)[:, :, None], 0.0, matrices)
    return matrices, not counts_unused_places(stored, lists)


def _spectra(questions: Sequence[SpectrumOf]) -> list[Spectrum | None]:
    return spectra_of([question.dense for question in questions])


def _stack(members: Sequence[Member]) -> Stack:
    """Return the stack of members, one that was made before if there is one."""
    wanted = [(member.listed, member.potential) for member in members]
    stacks: list[Stack] = _local.__dict__.setdefault("stacks", [])
    stack = next((stack for stack in stacks if stack.holds(wanted)), None)
    if stack is None:
        stack = Stack(wanted, shares=members[0].shares)
        stacks.insert(0, stack)
        del stacks[KEPT_STACKS:]
    return stack
