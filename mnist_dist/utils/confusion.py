"""What a confusion matrix says first: which classes are taken for which others."""

from __future__ import annotations

from collections.abc import Sequence


def most_frequent_mistakes(confusion: Sequence[Sequence[int]], most: int) -> list[tuple[int, int, int]]:
    """Number of images, true class and predicted class of the most frequent mistakes; equally frequent ones by class.

    Args:
        confusion: (K, K) counts; rows are true classes, columns predictions.
        most: largest number of mistakes.
    """
    pairs = [
        (images, label, predicted)
        for label, row in enumerate(confusion)
        for predicted, images in enumerate(row)
        if images and label != predicted
    ]
    return sorted(pairs, key=lambda pair: (-pair[0], *pair[1:]))[:most]
