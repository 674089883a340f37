"""The prompts of the rows that are kept, as numbers: which are the same, and which rows of several groups share."""

from array import array

import numpy as np

from tasks.data.intake import Intake
from tasks.data.splits import prompt_id


def prompt_name(number: int) -> str:
    """The `prompt_id` that is this number."""
    return f"{number:016x}"


class Prompts:
    """The prompt of every conversation that is kept, numbered in the order in which rows and conversations are read."""

    def __init__(self, intake: Intake, groups: np.ndarray) -> None:
        ids, rows, told = array("Q"), array("i"), array("b")
        for index, kept in intake.spool.rows(intake.keep):
            for example in kept.examples:
                ids.append(int(prompt_id(example.prompt), 16) if example.prompt else 0)
                rows.append(index)
                told.append(bool(example.kind))
        self._ids = np.frombuffer(ids, np.uint64)
        self._groups, self._told = groups[np.frombuffer(rows, np.int32)], np.frombuffer(told, bool)
        order = np.argsort(self._ids, kind="stable").astype(np.int32)
        named = self._ids[order]
        begins = np.flatnonzero(np.concatenate([[True], named[1:] != named[:-1]])[: len(order)]).astype(np.int32)
        del named
        self._first = np.empty(len(order), np.int32)
        self._first[order] = np.repeat(order[begins], np.diff(begins, append=np.int32(len(order))))
        self._noted = np.zeros(len(order), bool)
        self._shared = self._find_shared()

    def number(self, place: int) -> int:
        """The `prompt_id` of a conversation as a number; 0 for plain text."""
        return int(self._ids[place])

    def name(self, place: int) -> str:
        """The `prompt_id` of a conversation; empty for plain text."""
        return prompt_name(self.number(place)) if self._ids[place] else ""

    def is_shared(self, place: int) -> bool:
        """Whether rows of different groups have this prompt, because their phrasing says nothing of the row."""
        return bool(self._shared[self._first[place]])

    def note(self, place: int) -> bool:
        """Mark a prompt; whether that is the first time."""
        first = self._first[place]
        new = not self._noted[first]
        self._noted[first] = True
        return new

    def _find_shared(self) -> np.ndarray:
        shared = np.zeros(len(self._ids), bool)
        told = np.flatnonzero(self._told & (self._ids != 0))
        group_of = np.full(len(self._ids), -1, np.int32)
        group_of[self._first[told[::-1]]] = self._groups[told[::-1]]  # the first one's stays
        apart = told[group_of[self._first[told]] != self._groups[told]]
        shared[self._first[apart]] = True
        return shared
