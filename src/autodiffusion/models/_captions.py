"""Captions: what the samples of a text-to-image model are asked to show, from a file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from autodiffusion._errors import InputError

COLUMNS = ("caption", "text", "prompt")
"""Columns of a CSV that hold captions; the first of them that is there counts."""


@dataclass(frozen=True)
class Captions:
    """What samples are asked to show, in words.

    Attributes:
        name: the file's.
        texts: one for each sample, until there are none left; empty where no file was given.
    """

    name: str = ""
    texts: tuple[str, ...] = ()

    @classmethod
    def read(cls, file: str | Path) -> Captions:
        """The captions in a text file, a line each; a ``.csv``; or COCO's ``.json``, such as ``captions_val2014.json``.

        Lines and cells without a text are left out; what stands there twice stays twice. A CSV has a head with a column
        ``caption``, ``text`` or ``prompt``. COCO has about five captions an image, of which the one with the lowest
        ``id`` counts, as one caption an image is usual; images come by their ``image_id``.

        Raises:
            InputError: no such file, another encoding than UTF-8, another form, or no caption in it.
        """
        path = Path(file)
        try:
            content = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise InputError(f"captions {path}: is not a UTF-8 text; save it as UTF-8") from None
        except OSError as error:
            raise InputError(f"captions {path}: cannot be read ({error.strerror}); give a file") from None
        read = {".csv": _of_csv, ".json": _of_coco}.get(path.suffix.lower(), _of_text)
        try:
            texts = tuple(text.strip() for text in read(content) if text.strip())
        except _FormError as error:
            raise InputError(f"captions {path}: {error}") from None
        if not texts:
            raise InputError(f"captions {path}: holds no captions; give one for each sample")
        return cls(str(path), texts)

    def numbers(self, indices: Sequence[int], draw: torch.Generator) -> Tensor:
        """The numbers ``[len(indices)]`` of samples' captions, in an order that ``draw`` shuffles.

        Each caption is used once before one is used again.

        Raises:
            InputError: there are no captions.
        """
        self.check(1)
        order = torch.randperm(len(self.texts), generator=draw)
        return order[torch.tensor(indices) % len(self.texts)]

    def check(self, samples: int) -> None:
        """Raises :class:`InputError` unless there is a caption for each of so many samples."""
        if not self.texts:
            raise InputError("a text-to-image model needs captions; give --captions FILE with one for each sample")
        if samples > len(self.texts):
            raise InputError(
                f"captions {self.name}: {len(self.texts):,} are too few for {samples:,} samples, of which each has its "
                "own; give more (lines may repeat), or ask for fewer samples"
            )


class _FormError(Exception):
    """A file is not of the form that its name promises; the message says what to mend."""


def _of_text(content: str) -> Iterable[str]:
    return content.split("\n")  # and at no other sign that Unicode counts as the end of a line


def _of_csv(content: str) -> Iterable[str]:
    try:
        rows = csv.DictReader(io.StringIO(content), strict=True)
        head = [name.strip().lower() for name in rows.fieldnames or ()]
        column = next((head.index(name) for name in COLUMNS if name in head), None)
        if column is None:
            columns = f"has the columns {', '.join(head)}" if head else "is empty"
            raise _FormError(f"{columns}; name the one with the captions {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}")
        key = (rows.fieldnames or ())[column]
        return [row[key] or "" for row in rows]
    except csv.Error as error:
        raise _FormError(f"is not a CSV ({error}); put captions with commas or quotes into double quotes") from None


def _of_coco(content: str) -> Iterable[str]:
    try:
        annotations = json.loads(content)["annotations"]
        first: dict[int, tuple[int, str]] = {}
        for annotation in annotations:
            image, found = int(annotation["image_id"]), (int(annotation["id"]), str(annotation["caption"]))
            first[image] = min(first.get(image, found), found)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _FormError(
            "is not COCO's list of annotations, each with id, image_id and caption; give its captions_*.json, "
            "a text file or a .csv"
        ) from None
    return [first[image][1] for image in sorted(first)]
