import pytest

from segjax.data import open_split
from segjax.training.feed import feed
from segjax.training.loop import train_batches


@pytest.fixture
def batches(tiny):
    return train_batches(tiny, open_split(tiny.data, "train"))


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_batches_come_in_their_order_and_so_many_are_placed_ahead(tiny, batches, ahead):
    placed = []

    def place(batch):
        placed.append(batch["index"].tolist())
        return placed[-1]

    fed = feed(batches, place, ahead)
    first, second = next(fed), next(fed)
    assert [first.placed, second.placed] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(first.names) == tiny.training.global_batch
    assert len(placed) == 2 + ahead


def test_the_position_is_that_after_its_own_batch_not_of_what_was_read_ahead(tiny, batches):
    fed = feed(batches, lambda batch: batch["index"].tolist(), 2)
    position = next(fed).position
    following = next(fed).placed
    again = train_batches(tiny, open_split(tiny.data, "train"))
    again.set_state(position)
    assert next(again)["index"].tolist() == following
