"""Batches on their way to the devices: placed before they are needed, each with the position to save after it."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from segjax.data import TrainLoader


class Fed(NamedTuple):
    """A batch for a step.

    Attributes:
      placed: what `place` made of it, on the devices.
      names: of its examples.
      position: the loader's, for a run that goes on after this batch.
    """

    placed: Any
    names: list[str]
    position: dict[str, Any]


def feed(batches: TrainLoader, place: Callable[[dict[str, Any]], Any], ahead: int) -> Iterator[Fed]:
    """Yields the batches of `batches` in their order; `ahead` of them are placed before they are asked for."""
    waiting: deque[Fed] = deque()
    for batch in batches:
        waiting.append(Fed(place(batch), batch["name"].tolist(), batches.get_state()))
        if len(waiting) > ahead:
            yield waiting.popleft()
