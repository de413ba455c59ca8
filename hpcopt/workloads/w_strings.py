"""The W-language (Rychlik 2018, arXiv:1806.09038, sect. 2): strings over X and O, drawn with a pen.

A picture is a row of columns of three pixels, of which the pen blackens one, or none at both ends. X takes the pen from
height 2 to 0 and back, ``2 1 0 1 2``; O is ``0 1 2 1 0``. A letter after its like goes on from the column where that
ended; after the other the pen jumps. Inside a long run of one letter the heights ``.. 1 2 1 0 1 2 ..`` are those of the
other, too: which letter it is takes a memory of where the run began.

A network sees frames, two columns side by side, and marks a letter where the left column has first reached its apex.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from hpcopt.errors import DataError

LETTERS, BLANK = "XO", 3
STROKES = {"X": (2, 1, 0, 1, 2), "O": (0, 1, 2, 1, 0)}
TO_APEX, STROKE = 2, 4  # columns from a letter's first to its apex, and to its last, which may be the next one's first
INPUTS, OUTPUTS = 6, 2
_PIXELS = np.vstack([np.eye(3, dtype=np.float32), np.zeros((1, 3), np.float32)])  # of each height, and of BLANK


def draw_string(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw a string of X and O: the height of each column, (T + 1,), int64, BLANK at both ends; and what is to be found
    in each of its T frames, (T, 2), 1 in the letter's place where it has reached its apex.

    >>> draw_string("XX")[0].tolist()
    [3, 2, 1, 0, 1, 2, 1, 0, 1, 2, 3]
    >>> draw_string("XO")[1].argmax(0).tolist()  # the frames of the one X and of the one O
    [3, 8]
    """
    heights, apexes = [BLANK], list[int]()
    for letter, run in groupby(text):
        first = len(heights)
        heights.append(STROKES[letter][0])
        for number, _ in enumerate(run):
            heights += STROKES[letter][1:]
            apexes.append(first + number * STROKE + TO_APEX)
    targets = np.zeros((len(heights), OUTPUTS), np.float32)
    targets[apexes, [LETTERS.index(letter) for letter in text]] = 1
    return np.array([*heights, BLANK]), targets


def stretched(heights: np.ndarray, targets: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A drawing whose columns are repeated so many times each, (T + 1,), at least once; an apex is still reached once.

    >>> heights, targets = stretched(*draw_string("X"), np.array([1, 1, 3, 2, 1, 1, 1]))
    >>> heights.tolist(), targets.argmax(0).tolist()[0]
    ([3, 2, 1, 1, 1, 0, 0, 1, 2, 3], 5)
    """
    starts = np.cumsum(times) - times
    wide = np.zeros((int(times.sum()) - 1, OUTPUTS), targets.dtype)
    wide[starts[:-1]] = targets
    return np.repeat(heights, times), wide


def read_drawing(heights: np.ndarray) -> str:
    """The string of a drawing, (T + 1,), stretched or not.

    Raises:
        DataError: it is the drawing of none.

    >>> read_drawing(draw_string("XOOXXO")[0])
    'XOOXXO'
    """
    path = heights[np.flatnonzero(np.diff(heights, prepend=-1))]  # repeated columns once
    if (path == BLANK).nonzero()[0].tolist() != [0, len(path) - 1]:
        raise DataError("no drawing of a string: blank columns are at both ends, and not between")
    path = path[1:-1]
    text = ""
    for run in np.split(path, np.flatnonzero(np.abs(np.diff(path)) > 1) + 1):
        letter = LETTERS[0] if run[0] == STROKES["X"][0] else LETTERS[1]
        text += letter * ((len(run) - 1) // STROKE)
    if not np.array_equal(draw_string(text)[0][1:-1], path):
        raise DataError(f"no drawing of a string: the pen goes {' '.join(map(str, path))}")
    return text


def marked(marks: np.ndarray) -> str:
    """The string that marks of frames, (T, 2), spell: X or O where there is one above a half.

    >>> marked(draw_string("XOOXXO")[1])
    'XOOXXO'
    """
    return "".join(LETTERS[letter] for _, letter in np.argwhere(marks > 0.5))


def frames_of(drawings: Sequence[np.ndarray]) -> np.ndarray:
    """The frames of drawings, each of its own length: two columns side by side, (n, T, 6), float32, T of the longest;
    the others go on blank.
    """
    longest = max(map(len, drawings), default=2)
    heights = np.full((len(drawings), longest), BLANK)
    for row, drawing in zip(heights, drawings, strict=True):
        row[: len(drawing)] = drawing
    pixels = _PIXELS[heights]
    return np.concatenate([pixels[:, :-1], pixels[:, 1:]], 2)
