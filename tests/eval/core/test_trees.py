"""Texts as trees: nothing lost, nothing run twice, and each token sees its own text only."""

from __future__ import annotations

import random

import numpy as np
import pytest

from firstlight.eval.core.scorer import Request
from firstlight.eval.core.trees import batches, common_prefix, pack, plant


def drawn_groups(seed: int, num: int = 20) -> list[list[Request]]:
    draw = random.Random(seed)
    groups = []
    for _ in range(num):
        head = [draw.randrange(50) for _ in range(draw.randint(1, 15))]
        group = []
        for _ in range(draw.randint(1, 5)):
            ids = head[: draw.randint(1, len(head))] if draw.random() < 0.3 else list(head)
            ids = (*ids, *(draw.randrange(50) for _ in range(draw.randint(1, 6))))
            group.append(Request(ids, draw.randint(1, len(ids) - 1)))
        groups.append(group)
    return groups


@pytest.mark.parametrize(
    ("a", "b", "shared"), [((), (1,), 0), ((1, 2), (1, 2, 3), 2), ((1, 2, 3), (1, 9, 3), 1), ((5,), (6,), 0)]
)
def test_the_common_beginning(a: tuple, b: tuple, shared: int):
    assert common_prefix(a, b) == common_prefix(b, a) == shared


def test_the_common_beginning_of_drawn_texts():
    draw = random.Random(0)
    for _ in range(300):
        a, b = ([draw.randrange(2) for _ in range(draw.randint(0, 12))] for _ in range(2))
        brute = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        assert common_prefix(a, b) == brute


def test_choices_of_one_id_need_no_token_besides_the_question():
    question = tuple(range(10))
    trees = plant([[Request((*question, choice), 10) for choice in (11, 12, 13, 14)]])
    assert [(tree.prefix_len, tree.num_tokens) for tree in trees] == [(10, 10)]


def test_a_text_joins_where_that_saves_most():
    a = [Request((*range(20), 50, 51), 20), Request((*range(20), 60, 61), 20)]
    other = [Request((90, *range(20), 50), 20), Request((90, *range(20), 60), 20)]
    trees = plant([[a[0], other[0], a[1], other[1]]])
    assert sorted((tree.prefix_len, [number for number, _ in tree.members]) for tree in trees) == [
        (20, [0, 2]),
        (21, [1, 3]),
    ]


def test_texts_of_different_groups_stay_apart():
    request = Request(tuple(range(10)), 5)
    assert len(plant([[request], [request]])) == 2


def test_batches_hold_every_tree_once_within_the_limit_padding_included():
    trees = plant(drawn_groups(1))
    found = list(batches(trees, max_tokens=60))
    assert sorted(id(tree) for batch in found for tree in batch) == sorted(map(id, trees))
    for batch in found:
        padded = len(batch) * (
            max(tree.prefix_len for tree in batch) + max(tree.num_tokens - tree.prefix_len for tree in batch)
        )
        assert padded <= 60 or len(batch) == 1
    assert max(map(len, found)) > 1


def test_following_the_parents_gives_each_scored_text_back():
    trees = plant(drawn_groups(2))
    packed = pack(trees)
    requests = dict(member for tree in trees for member in tree.members)
    assert len(packed.ids_N) == sum(tree.num_tokens for tree in trees)
    for number, part in packed.members:
        request = requests[number]
        assert packed.targets_S[part].tolist() == list(request.ids[request.start :])
        for s, end in zip(range(part.start, part.stop), range(request.start, len(request.ids)), strict=True):
            place, text, positions = packed.used_W[packed.predicted_from_S[s]], [], []
            while place >= 0:
                text.append(int(packed.ids_N[place]))
                positions.append(int(packed.positions_N[place]))
                place = packed.parents_N[place]
            assert tuple(text[::-1]) == request.ids[:end]
            assert positions[::-1] == list(range(end))


def test_a_token_sees_exactly_its_own_text():
    trees = plant(drawn_groups(3))
    packed = pack(trees)
    M = packed.prefix_width + packed.branch_width
    for w, place in enumerate(packed.used_W):
        r, u = divmod(int(packed.used_at[w]), packed.used_width)
        seen = {int(r * M + m) for m in np.flatnonzero(packed.sees_RUM[r, u])}
        own = set()
        while place >= 0:
            own.add(int(packed.key_at[place]))
            place = packed.parents_N[place]
        assert seen == own
