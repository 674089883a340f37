"""Answers of several people about the same things, as arrays: what every statistic of agreement is computed from.

A *unit* is the smallest thing that people answered alike or not: a completion of a record that was rated, two
completions that were put in order, a record that was labelled. A record has as many columns as it has units.
"""

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from labeling.measures.bootstrap import Floats, Ints, Resampling

MISSING = -1
AT_ONCE = 1 << 17
"""Rows compared at once: what keeps memory low."""


@dataclass(frozen=True)
class Block:
    """What was said about the records with one number of things to say something about."""

    record: Ints
    """Answer -> number of its record; sorted, and within a record by annotator."""
    annotator: Ints
    """Answer -> number of its annotator."""
    values: Floats
    """[answers, things] in the order of the things' names; NaN where nothing was said."""


@dataclass(frozen=True)
class Answers:
    """Everybody's answers about some records."""

    records: list[str]
    """In the order of their first answers."""
    annotators: list[str]
    """Sorted."""
    blocks: list[Block]

    def where(self, kept: NDArray[np.bool_]) -> "Answers":
        """The answers about the records of which `kept` [records] is true."""
        number = np.cumsum(kept) - 1
        blocks = []
        for block in self.blocks:
            rows = kept[block.record]
            if rows.any():
                blocks.append(Block(number[block.record[rows]], block.annotator[rows], block.values[rows]))
        records = [record for record, keep in zip(self.records, kept.tolist(), strict=True) if keep]
        return Answers(records, self.annotators, blocks)

    def mapped(self, change: Callable[[Floats], Floats]) -> "Answers":
        """The same answers with their values [answers, things] changed block by block."""
        return replace(self, blocks=[replace(block, values=change(block.values)) for block in self.blocks])


@dataclass(frozen=True)
class Table:
    """Categories given to units, in rows of one annotator and one record each."""

    item: Ints
    """Row -> what it is about; sorted. Rows about one item can be compared, column by column."""
    owner: Ints
    """Row -> the record it belongs to: what is drawn when intervals are made."""
    rater: Ints
    """Row -> annotator, ascending within an item."""
    codes: Ints
    """Category [rows, columns] as a place on the scale; `MISSING` where there is none."""

    def dyads(self) -> Iterator[tuple[Ints, Ints]]:
        """Every two rows about one item, as portions of row numbers; the lower annotator is on the left."""
        apart = 1
        while (rows := np.flatnonzero(self.item[apart:] == self.item[:-apart])).size:
            for start in range(0, rows.size, AT_ONCE):
                left = rows[start : start + AT_ONCE]
                yield left, left + apart
            apart += 1

    def raters(self) -> Ints:
        """How many gave a category to the unit of each cell [rows, columns]."""
        if not self.item.size:
            return np.zeros(self.codes.shape, dtype=int)
        starts = np.flatnonzero(np.diff(self.item, prepend=self.item[0] - 1))
        given = np.add.reduceat((self.codes != MISSING), starts, axis=0, dtype=np.int32)
        return np.repeat(given, np.diff(starts, append=self.item.size), axis=0)

    def pairable(self, raters: Ints) -> Iterator[tuple[Ints, Ints]]:
        """The cells whose unit two or more gave a category to, in portions of rows and columns; `raters` as above."""
        for start in range(0, self.item.size, AT_ONCE):
            part = slice(start, start + AT_ONCE)
            rows, columns = np.nonzero((raters[part] > 1) & (self.codes[part] != MISSING))
            yield rows + start, columns

    def of_rater(self, rater: int) -> "Table":
        """One annotator against each other: every two rows that this one is part of are an item of their own."""
        pairs = [
            np.stack([left, right])[:, (self.rater[left] == rater) | (self.rater[right] == rater)]
            for left, right in self.dyads()
        ]
        rows = np.concatenate([each.T.ravel() for each in pairs]) if pairs else np.zeros(0, dtype=int)
        item = np.repeat(np.arange(rows.size // 2), 2)
        return replace(self, item=item, owner=self.owner[rows], rater=self.rater[rows], codes=self.codes[rows])

    def renumbered(self, owners: Ints) -> "Table":
        """The same rows, their records numbered as they stand in `owners`, sorted."""
        return replace(self, owner=np.searchsorted(owners, self.owner))


def answers(rows: Iterable[tuple[str, str, Mapping[str, float]]], *, fewest: int = 2) -> Answers:
    """Answers (record, annotator, thing -> number) as arrays.

    Records with fewer annotators than `fewest` are left out. A second answer of an annotator to a record takes the
    place of the first. What some annotators left out of a record is missing.
    """
    of_record, of_annotator, values = [], [], []
    for record, annotator, value in rows:
        of_record.append(record)
        of_annotator.append(annotator)
        values.append(value)
    names = _names(of_record, values)
    records = {record: number for number, record in enumerate(names)}
    annotators = sorted(set(of_annotator))
    numbers = {annotator: number for number, annotator in enumerate(annotators)}
    owner = np.fromiter(map(records.__getitem__, of_record), np.int64, len(of_record))
    rater = np.fromiter(map(numbers.__getitem__, of_annotator), np.int64, len(of_record))
    things = np.fromiter(map(len, names.values()), np.int64, len(names))[owner]
    cells = {count: array("d") for count in set(things.tolist())}
    for record, value in zip(of_record, values, strict=True):
        columns = names[record]
        if len(value) == len(columns):
            cells[len(columns)].extend(map(value.__getitem__, columns))
        else:
            cells[len(columns)].extend(value.get(thing, math.nan) for thing in columns)
    blocks = [
        _block(owner[things == count], rater[things == count], np.array(found).reshape(-1, count), len(annotators))
        for count, found in sorted(cells.items())
    ]
    everything = Answers(list(names), annotators, blocks)
    seen = np.zeros(len(names), dtype=int)
    for block in blocks:
        seen += np.bincount(block.record, minlength=len(names))
    return everything if (seen >= fewest).all() else everything.where(seen >= fewest)


def midranked(values: Floats) -> Floats:
    """Numbers [rows, things] as ranks per row, smallest first: equal ones share the mean of the places they take up."""
    below = np.zeros(values.shape)
    equal = np.zeros(values.shape)
    for column in range(values.shape[1]):
        other = values[:, column, None]
        below += other < values
        equal += other == values
    return np.where(np.isnan(values), np.nan, below + (equal + 1) / 2)


def tables_of(found: Answers, codes: Sequence[Ints]) -> list[Table]:
    """A table per block, from the categories of its cells [answers, columns]."""
    return [
        Table(item=block.record, owner=block.record, rater=block.annotator, codes=each)
        for block, each in zip(found.blocks, codes, strict=True)
    ]


def table_of(ratings: Ints, owners: Ints) -> Table:
    """Categories [annotators, units] as a table of one column, each unit belonging to the record `owners` [units]."""
    unit, rater = np.nonzero(ratings.T != MISSING)
    return Table(item=unit, owner=owners[unit], rater=rater, codes=ratings.T[unit, rater][:, None])


def agreeing_and_given(
    tables: Sequence[Table], categories: int, resampling: Resampling, counted: Callable[[Ints], Ints]
) -> tuple[Floats, Floats]:
    """How much annotators agree [draws], and how much each category was given [draws, categories].

    A unit counts `counted(its number of annotators)` in both, shared equally by its pairs and by its categories.
    """
    alike = np.zeros((resampling.groups, 1))
    given = np.zeros(resampling.groups * categories)
    for table in tables:
        raters = table.raters()
        for left, right in table.dyads():
            same = (table.codes[left] == table.codes[right]) & (table.codes[left] != MISSING)
            pairs = np.maximum(raters[left] * (raters[left] - 1) / 2, 1)
            alike += resampling.sums(table.owner[left], (same * counted(raters[left]) / pairs).sum(axis=1))
        for rows, columns in table.pairable(raters):
            cells = resampling.group[table.owner[rows]] * categories + table.codes[rows, columns]
            each = raters[rows, columns]
            given += np.bincount(cells, counted(each) / each, minlength=given.size)
    return resampling.totals(alike)[:, 0], resampling.totals(given.reshape(-1, categories))


def _names(of_record: Sequence[str], values: Sequence[Mapping[str, float]]) -> dict[str, tuple[str, ...]]:
    """Record -> the names of all that was said something about, sorted; records come in the order of their answers."""
    first: dict[str, Mapping[str, float]] = {}
    more: dict[str, set[str]] = {}
    for record, value in zip(of_record, values, strict=True):
        known = first.setdefault(record, value)
        if known is not value and known.keys() != value.keys():
            more.setdefault(record, set(known)).update(value)
    return {record: tuple(sorted(more.get(record, value))) for record, value in first.items()}


def _block(record: Ints, annotator: Ints, values: Floats, annotators: int) -> Block:
    """Sorted by record and annotator; of two answers of one annotator to one record the later one."""
    key = (record * annotators + annotator)[::-1]
    rows = len(key) - 1 - np.unique(key, return_index=True)[1]
    return Block(record[rows], annotator[rows], values[rows])
