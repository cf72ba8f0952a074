"""How rows are cut into tiles."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ltune.models.fast.tiles import Lent, Rows

LENGTHS = st.lists(st.integers(0, 70), min_size=1, max_size=12)


def rows_of(lengths, lent=None):
    return Rows(torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), max(lengths), lent)


@given(LENGTHS, st.integers(1, 64), st.booleans())
def test_each_token_stands_in_one_tile_of_its_row(lengths, tile, longest_first):
    tiles = rows_of(lengths).tiles(tile, sum(lengths), longest_first).tolist()
    assert len(tiles) == sum(lengths) // tile + len(lengths)  # whatever the rows' lengths are
    covered = [begin + place for begin, length, first, *_ in tiles for place in range(first, min(first + tile, length))]
    assert (covered if not longest_first else sorted(covered)) == list(range(sum(lengths)))
    of_rows = {(begin, length) for begin, length, first, *_ in tiles if first < length}
    assert of_rows == {(sum(lengths[:number]), length) for number, length in enumerate(lengths) if length}
    behind = [length - first for _, length, first, *_ in tiles]
    assert not longest_first or behind == sorted(behind, reverse=True)


def test_tiles_know_what_their_row_borrows_and_are_made_once():
    ints = [torch.tensor(numbers, dtype=torch.int32) for numbers in ([0, 0, 0, 0, 0], [0, 0, 3, 6, 6], [0, 2, 0, 0, 0])]
    rows = rows_of((3, 5, 2, 4), Lent(*ints, 6))
    tiles = rows.tiles(4, 14)
    assert [(first, lender, count) for _, length, first, lender, count in tiles.tolist() if first < length] == [
        (0, 0, 0), (0, 0, 3), (4, 0, 3), (0, 0, 3), (0, 0, 0),
    ]  # fmt: skip
    assert rows.tiles(4, 14) is tiles
    assert rows.tiles(4, 14, longest_first=True)[0].tolist() == [3, 5, 0, 0, 3]
