"""Groups of near duplicates: pictures that differ only by noise or compression.

Two pictures are near duplicates if the root mean square difference of their pixels is at most `MOST_DIFFERENCE`, and at
most `MOST_SHARE` of their own standard deviation. Without the second condition, all faint pictures would be near
duplicates.

Only some pairs are compared pixel by pixel. Each picture is reduced to a thumbnail, the means of its 8 x 8 parts, and
the thumbnail to its first principal components. Two pictures are at least as different as their thumbnails, and these
as their components. (Faloutsos et al. filter by such a lower bound: "Fast subsequence matching in time-series
databases", 1994.) A k-d tree (Bentley, 1975) finds the pictures with the nearest components within the allowed
distance, and only these are compared.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.data.imports.decoding import THUMBNAIL

MOST_DIFFERENCE = 8.0  # grey values, of 255
MOST_SHARE = 0.15
NEIGHBOURS = 8  # nearest pictures of each that are compared with it
LARGEST_GROUP = 100  # a larger group would be most of a class, or a whole film
_COMPONENTS = 12
_BLOCK = 65_536  # pictures whose neighbours are searched together
_COMPARED = 2**24  # bytes of pixels that are compared together


@dataclass(frozen=True)
class NearDuplicates:
    """Groups of pictures that are near duplicates."""

    group: np.ndarray  # int64 [n]: the lowest row number in the picture's group
    left_apart: int  # pairs of near duplicates in two groups, which together would exceed `LARGEST_GROUP`


def find_near_duplicates(
    pixels: np.ndarray, rows: np.ndarray, thumbnails: np.ndarray, spread: np.ndarray
) -> NearDuplicates:
    """Find the groups of near duplicates among some pictures. Arguments: as for `find_pairs`."""
    group = np.arange(len(pixels))
    first, second, _ = find_pairs(pixels, rows, thumbnails, spread)
    sizes = np.ones(len(pixels), np.int64)
    left_apart = 0
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        low, high = sorted((_find_root(group, one), _find_root(group, other)))
        if low == high:
            continue
        if sizes[low] + sizes[high] > LARGEST_GROUP:
            left_apart += 1
            continue
        group[high] = low
        sizes[low] += sizes[high]
    for row in np.flatnonzero(group != np.arange(len(group))).tolist():
        group[row] = _find_root(group, row)
    return NearDuplicates(group, left_apart)


def find_pairs(
    pixels: np.ndarray, rows: np.ndarray, thumbnails: np.ndarray, spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the pairs of near duplicates among some pictures.

    Args:
        pixels: of all pictures, uint8 [m, …].
        rows: the row numbers of the pictures to search, int64 [n].
        thumbnails: means of 8 x 8 parts, float32 [m, 64].
        spread: standard deviation of the pixels, float32 [m].

    Returns:
        the row numbers of each pair, int64 [k] and [k], the lower one first, and the root mean square difference of its
        pixels, float32 [k], in ascending order.
    """
    if len(rows) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    first, second = _find_candidates(thumbnails[rows])
    first, second = rows[first], rows[second]
    difference = _compare(pixels, first, second)
    limit = np.minimum(MOST_DIFFERENCE, MOST_SHARE * np.minimum(spread[first], spread[second]))
    found = np.flatnonzero(difference <= limit)
    found = found[np.lexsort((second[found], first[found], difference[found]))]
    return first[found], second[found], difference[found]


def _find_root(group: np.ndarray, row: int) -> int:
    while group[row] != row:
        group[row] = group[group[row]]
        row = int(group[row])
    return row


def _find_candidates(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of positions whose thumbnails are close: int64 [k] and [k], the lower one first."""
    from scipy.spatial import cKDTree

    centre = thumbnails.mean(axis=0)
    every = max(1, len(thumbnails) // 5000)
    _, _, directions = np.linalg.svd(thumbnails[::every] - centre, full_matrices=False)
    points = ((thumbnails - centre) @ directions[:_COMPONENTS].T).astype(np.float64)
    tree = cKDTree(points)
    reach = MOST_DIFFERENCE * THUMBNAIL  # a distance over 8 x 8 values
    pairs = []
    for start in range(0, len(points), _BLOCK):
        block = points[start : start + _BLOCK]
        wanted = min(NEIGHBOURS + 1, len(points))
        distance, neighbour = tree.query(block, k=wanted, distance_upper_bound=reach, workers=-1)
        one = np.repeat(np.arange(start, start + len(block)), wanted).reshape(len(block), wanted)
        near = np.isfinite(distance) & (neighbour != one)
        pairs.append(np.stack([np.minimum(one, neighbour)[near], np.maximum(one, neighbour)[near]]))
    first, second = np.unique(np.concatenate(pairs, axis=1), axis=1)
    close = np.linalg.norm(thumbnails[first] - thumbnails[second], axis=1) <= reach
    return first[close], second[close]


def _compare(pixels: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the root mean square difference of pairs of pictures: float32 [k]."""
    block = max(1, _COMPARED // (4 * int(np.prod(pixels.shape[1:]))))
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(first), block):
        part = slice(start, start + block)
        change = pixels[first[part]].astype(np.float32) - pixels[second[part]]
        parts.append(np.sqrt(np.square(change).reshape(len(change), -1).mean(axis=1)))
    return np.concatenate(parts)
