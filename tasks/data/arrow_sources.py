"""Instruction sets that Arrow reads: files of Parquet, and the hub."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from tasks.artifact import InputError
from tasks.data.phrasings import PhrasedSet
from tasks.data.reading import Line, check_names, first_line


class ParquetSet(PhrasedSet):
    """A Parquet file, or a folder of them."""

    kind: Literal["parquet"]
    """Files of Parquet."""
    path: str
    """The file or folder."""
    split: str = "train"
    """Which files of a folder, where their names or folders say it, as in `test-00000-of-00001.parquet`; also a split
    with a name of its own, such as `train_sft`."""

    def source_files(self) -> list[Path]:
        """What is read, in the order of the names. Raises `InputError` for a folder without the split, or with several
        that the name may mean."""
        path = Path(self.path).expanduser()
        if not path.is_dir():
            return [path]
        found = sorted(path.rglob("*.parquet"))
        own = {file: _own_split(file) for file in found}
        if self.split in own.values():
            return [file for file in found if own[file] == self.split]
        splits = {file: _split_of(file.relative_to(path)) for file in found}
        there = {split for split in splits.values() if split}
        wanted = _SPLITS.get(self.split, self.split)
        exact = [file for file in found if splits[file] == wanted and not own[file]]
        named = {own[file] for file in found if own[file] and splits[file] == wanted}
        if named and exact:
            return exact
        if len(named) > 1:
            raise InputError(
                f"{self.path} has several splits that '{self.split}' may mean; set 'split' to one of "
                f"{', '.join(sorted(named))}."
            )
        if there and wanted not in there:
            names = ", ".join(sorted({own[file] or splits[file] for file in found} - {""}))
            raise InputError(f"{self.path} has no files of the split '{self.split}'; set 'split' to one of {names}.")
        return [file for file in found if splits[file] == wanted] if there else found

    def lines(self) -> Iterator[Line]:
        """The rows. Raises `InputError` when there is no file or it is not Parquet."""
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        files = self.source_files()
        if not files:
            raise InputError(f"{self.path} holds no .parquet file; check the path in the recipe.")
        number = 0
        for path in files:
            try:
                with parquet.ParquetFile(path) as file:
                    check_names(file.schema_arrow.names, path)
                    for batch in file.iter_batches(1024):
                        for row in batch.to_pylist():
                            number += 1
                            yield number, without_fills(row)
            except (OSError, arrow.ArrowException) as error:
                raise InputError(f"{path} cannot be read as Parquet ({first_line(error)}); check the file.") from error


_SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "validation": "validation",
    "valid": "validation", "val": "validation", "dev": "validation", "eval": "test", "evaluation": "test",
}  # fmt: skip
_WORDS = re.compile(r"[^a-z]+")
_SHARD = re.compile(r"([A-Za-z]+[._]\w+(?:\.\w+)*)-\d{5}-of-\d{5}(?:-\w+)?\.parquet")
"""A file of the hub, whose split has a name of several words."""


def _own_split(file: Path) -> str:
    """The split in a file's name where it is one of several words that begin as the usual ones, as UltraChat's
    `train_sft` and `train_gen`; none where it is not."""
    found = _SHARD.fullmatch(file.name)
    return found[1] if found and _WORDS.split(found[1].casefold())[0] in _SPLITS else ""


def _split_of(file: Path) -> str:
    """The split that a file's name or folder says; none where it says none."""
    for part in reversed(file.parts):
        for word in _WORDS.split(part.casefold()):
            if word in _SPLITS:
                return _SPLITS[word]
    return ""


_TOOLS = {"tools", "functions", "tool_calls", "function_call"}


def without_fills(value: Any, tools: bool = False) -> Any:
    """A row of Arrow without the nulls that it fills the keys with which tools and their calls have in other rows."""
    if isinstance(value, dict):
        return {
            name: without_fills(each, tools or name in _TOOLS)
            for name, each in value.items()
            if not (tools and each is None)
        }
    return [without_fills(each, tools) for each in value] if isinstance(value, list) else value


_SAVED = ("dataset_dict.json", "state.json")
"""What `save_to_disk` writes."""
_ONLY = "default"
"""What the library calls the configuration of a data set that has no others."""


class HubSet(PhrasedSet):
    """A data set of the Hugging Face hub, or a copy of its repository, streamed; or what `save_to_disk` wrote."""

    kind: Literal["hub"]
    """A data set of the `datasets` library."""
    path: str
    """A hub id such as `tatsu-lab/alpaca`, or a folder."""
    config: str | None = None
    """Which of several configurations."""
    split: str = "train"
    """Which split."""
    revision: str | None = None
    """Branch, tag or commit on the hub; give a commit to read the same rows tomorrow."""

    def source_files(self) -> list[Path]:
        """The files of a folder but for hidden ones, as version control and downloads leave them; none for the hub,
        whose id and revision say what it is."""
        folder = Path(self.path).expanduser()
        found = sorted(folder.rglob("*")) if folder.is_dir() else []
        hidden = [any(part.startswith(".") for part in file.relative_to(folder).parts) for file in found]
        return [file for file, out in zip(found, hidden, strict=True) if not out and file.is_file()]

    def remarks(self) -> list[str]:
        """What in the settings says nothing of this data set."""
        folder = Path(self.path).expanduser()
        if self.config in (None, _ONLY) or not folder.is_dir() or self._known_config() == self.config:
            return []
        return [f"The set '{self.name}': {self.path} has no configurations, so config = '{self.config}' says nothing."]

    def _known_config(self) -> str | None:
        """The configuration to load. Raises `InputError` for one that a folder with several does not have.

        Plain files in a folder are the one configuration there is, whatever the hub calls it.
        """
        import datasets

        folder = Path(self.path).expanduser()
        if self.config is None or not folder.is_dir():
            return self.config
        if any((folder / name).is_file() for name in _SAVED):
            return None
        names = datasets.get_dataset_config_names(str(folder))
        if self.config in names:
            return self.config
        if names == [_ONLY]:
            return None
        raise InputError(
            f"{self.path} has no configuration '{self.config}'; set 'config' to one of {', '.join(names)}."
        )

    def _check_saved(self, rows: Any) -> None:
        """Refuse a saved split that says it is another than the one asked for."""
        if rows.split is not None and str(rows.split).split("[")[0] != self.split:
            raise InputError(f"{self.path} is the split '{rows.split}'; set split = \"{rows.split}\".")

    def lines(self) -> Iterator[Line]:
        """The rows; labels stay numbers. Raises `InputError` when the data set or its split is not there."""
        import datasets

        folder = Path(self.path).expanduser()
        if not folder.is_dir() and (self.path.startswith((".", "/", "~")) or self.path.count("/") > 1):
            raise InputError(f"The data set folder {self.path} does not exist; check the path, or give a hub id.")
        datasets.disable_progress_bars()  # its bars would write over the pipeline's own
        try:
            if any((folder / name).is_file() for name in _SAVED):
                rows: Any = datasets.load_from_disk(str(folder))
                if isinstance(rows, dict):
                    rows = rows[self.split]
                self._check_saved(rows)
            else:
                rows = datasets.load_dataset(
                    str(folder) if folder.is_dir() else self.path,
                    self._known_config(),
                    split=self.split,
                    revision=self.revision,
                    streaming=True,
                )
            for number, row in enumerate(rows, 1):
                yield number, without_fills(dict(row))
        except InputError:
            raise
        except Exception as error:  # whatever the library, a server or a file of theirs raises
            raise InputError(
                f"The data set '{self.path}' cannot be read ({first_line(error)}); check its name, config, split "
                f"('{self.split}') and the network, or give a folder."
            ) from error
