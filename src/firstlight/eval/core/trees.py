"""Texts that begin alike, as trees: the common beginning is run through the model once.

A tree is a prefix and the branches that follow it. Many trees are laid out one behind another in one flat row, without
padding, because nearly all of a model's work is done on each token by itself. Only attention needs to know which token
sees which: it reads the flat row through index tables.

A text's last id is never an input: nothing is predicted from it. So a question whose choices are one id each needs no
token besides those of the question.

Shapes: R trees in a batch, N tokens of all trees, P longest prefix, Q most branch tokens of a tree, U most scored places
of a tree, S scored ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from firstlight.eval.core.scorer import Request

MIN_SAVING = 4
"""Tokens that a text must save by joining a tree; fewer are not worth its more costly attention."""


@dataclass(frozen=True)
class Tree:
    """Requests that share their first ``prefix_len`` ids. members: each request's number and itself."""

    prefix_len: int
    members: tuple[tuple[int, Request], ...]

    @property
    def branch_lens(self) -> list[int]:
        """Input tokens of each member behind the prefix."""
        return [len(request.ids) - 1 - self.prefix_len for _, request in self.members]

    @property
    def num_tokens(self) -> int:
        """Input tokens in all."""
        return self.prefix_len + sum(self.branch_lens)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading ids that two texts share."""
    most = min(len(a), len(b))
    if tuple(a[:most]) == tuple(b[:most]):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if tuple(a[:middle]) == tuple(b[:middle]) else (low, middle)
    return low


def plant(groups: Sequence[Sequence[Request]]) -> list[Tree]:
    """Trees of all groups; requests are numbered through all groups in order. Only requests of one group share a tree.

    A request joins the tree of its group in which that saves most tokens: its own shared ones, less those by which it
    shortens the others' prefix. Where that is fewer than `MIN_SAVING` it starts a tree.
    """
    trees: list[Tree] = []
    number = 0
    for group in groups:
        found: list[tuple[int, list[tuple[int, Request]]]] = []
        for request in group:
            best, best_saving, best_shared = -1, MIN_SAVING - 1, 0
            for i, (prefix_len, members) in enumerate(found):
                shared = min(prefix_len, len(request.ids) - 1, common_prefix(members[0][1].ids, request.ids))
                saving = shared - (len(members) - 1) * (prefix_len - shared)
                if shared and saving > best_saving:
                    best, best_saving, best_shared = i, saving, shared
            if best < 0:
                found.append((len(request.ids) - 1, [(number, request)]))
            else:
                found[best] = (best_shared, [*found[best][1], (number, request)])
            number += 1
        trees += [Tree(prefix_len, tuple(members)) for prefix_len, members in found]
    return trees


def batches(trees: Sequence[Tree], *, max_tokens: int) -> Iterator[list[Tree]]:
    """Trees in batches of at most ``max_tokens`` input tokens (or one tree), similar ones together, the longest first.

    Padding counts: what attention is laid out to is the longest prefix and the most branch tokens of the batch.
    """
    ordered = sorted(trees, key=lambda tree: (-tree.prefix_len, -tree.num_tokens))
    batch: list[Tree] = []
    prefix = branch = 0
    for tree in ordered:
        longest, widest = max(prefix, tree.prefix_len), max(branch, tree.num_tokens - tree.prefix_len)
        if batch and (len(batch) + 1) * (longest + widest) > max_tokens:
            yield batch
            batch, longest, widest = [], tree.prefix_len, tree.num_tokens - tree.prefix_len
        batch.append(tree)
        prefix, branch = longest, widest
    if batch:
        yield batch


@dataclass(frozen=True)
class Packed:
    """A batch of trees in one flat row. All arrays are int64 unless said.

    ids_N, positions_N. parents_N: place of the token before in the same text, -1 at the start of a text. Prefixes of all
    trees come first, then all branches: the first ``num_prefix`` tokens are prefixes'.
    prefix_at: (num_prefix,) places of the prefix tokens in a padded (R,P). branch_at: those of the others in (R,Q).
    key_at: (N,) places of all tokens in a padded (R,P+Q).
    sees_RQM: bool, which of the M = P + Q keys a branch token sees; None where there are no branches.
    used_W: places in the flat row from which something is predicted, each once. used_at: (W,) their places in (R,U).
    sees_RUM: bool, which keys those see.
    predicted_from_S: for each scored id, which of the W it is predicted from. targets_S: the id.
    members: for each request its number and its slice of S.
    """

    num_trees: int
    ids_N: np.ndarray
    positions_N: np.ndarray
    parents_N: np.ndarray
    num_prefix: int
    prefix_width: int
    branch_width: int
    used_width: int
    prefix_at: np.ndarray
    branch_at: np.ndarray
    key_at: np.ndarray
    sees_RQM: np.ndarray | None
    used_W: np.ndarray
    used_at: np.ndarray
    sees_RUM: np.ndarray
    predicted_from_S: np.ndarray
    targets_S: np.ndarray
    members: tuple[tuple[int, slice], ...]


def pack(trees: Sequence[Tree]) -> Packed:
    """Lay a batch of trees out in one flat row."""
    R = len(trees)
    branch_totals = [tree.num_tokens - tree.prefix_len for tree in trees]
    P, Q = max(tree.prefix_len for tree in trees), max(branch_totals)
    num_prefix = sum(tree.prefix_len for tree in trees)
    N = num_prefix + sum(branch_totals)
    ids, positions, parents = np.empty(N, np.int64), np.empty(N, np.int64), np.empty(N, np.int64)
    key_at = np.empty(N, np.int64)
    sees_RQM = np.zeros((R, Q, P + Q), bool)
    used: list[np.ndarray] = []
    used_at: list[np.ndarray] = []
    sees_used: list[np.ndarray] = []
    predicted_from: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    members: list[tuple[int, slice]] = []
    first_prefix, first_branch, num_scored, num_used = 0, num_prefix, 0, 0
    for r, tree in enumerate(trees):
        p = tree.prefix_len
        flat = slice(first_prefix, first_prefix + p)
        ids[flat] = tree.members[0][1].ids[:p]
        positions[flat] = np.arange(p)
        parents[flat] = np.arange(first_prefix - 1, first_prefix + p - 1)
        parents[first_prefix] = -1
        key_at[flat] = r * (P + Q) + np.arange(p)
        # A padded query may see anything, as long as it sees something: a softmax over nothing is NaN.
        sees_RQM[r, :, :p] = True
        scored_of: list[np.ndarray] = []
        done = 0
        for (number, request), n in zip(tree.members, tree.branch_lens, strict=True):
            flat = slice(first_branch + done, first_branch + done + n)
            ids[flat] = request.ids[p : p + n]
            positions[flat] = p + np.arange(n)
            parents[flat] = np.arange(flat.start - 1, flat.stop - 1)
            if n:
                parents[flat.start] = first_prefix + p - 1
            key_at[flat] = r * (P + Q) + P + done + np.arange(n)
            sees_RQM[r, done : done + n, P + done : P + done + n] = np.tri(n, dtype=bool)
            from_t = np.arange(request.start - 1, len(request.ids) - 1)
            scored_of.append(np.where(from_t < p, first_prefix + from_t, flat.start + from_t - p))
            targets.append(np.asarray(request.ids[request.start :], np.int64))
            members.append((number, slice(num_scored, num_scored + len(from_t))))
            num_scored += len(from_t)
            done += n
        places, inverse = np.unique(np.concatenate(scored_of), return_inverse=True)
        used.append(places)
        predicted_from.append(num_used + inverse)
        sees = np.zeros((len(places), P + Q), bool)
        in_prefix = places < num_prefix
        sees[in_prefix, :P] = np.arange(P) <= (places[in_prefix] - first_prefix)[:, None]
        sees[~in_prefix] = sees_RQM[r, places[~in_prefix] - first_branch]
        sees_used.append(sees)
        num_used += len(places)
        first_prefix += p
        first_branch += done
    U = max(map(len, used))
    sees_RUM = np.zeros((R, U, P + Q), bool)
    sees_RUM[:, :, 0] = True
    for r, sees in enumerate(sees_used):
        sees_RUM[r, : len(sees)] = sees
        used_at.append(r * U + np.arange(len(sees)))
    prefix_at = key_at[:num_prefix] // (P + Q) * P + key_at[:num_prefix] % (P + Q)
    branch_at = key_at[num_prefix:] // (P + Q) * Q + key_at[num_prefix:] % (P + Q) - P
    return Packed(
        num_trees=R,
        ids_N=ids,
        positions_N=positions,
        parents_N=parents,
        num_prefix=num_prefix,
        prefix_width=P,
        branch_width=Q,
        used_width=U,
        prefix_at=prefix_at,
        branch_at=branch_at,
        key_at=key_at,
        sees_RQM=sees_RQM if Q else None,
        used_W=np.concatenate(used),
        used_at=np.concatenate(used_at),
        sees_RUM=sees_RUM,
        predicted_from_S=np.concatenate(predicted_from),
        targets_S=np.concatenate(targets),
        members=tuple(members),
    )
