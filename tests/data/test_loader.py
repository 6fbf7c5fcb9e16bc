import gc
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from collections import Counter
from multiprocessing.synchronize import SemLock

import cv2
import numpy as np
import pytest

from segjax.data.datasets import open_folder
from segjax.data.io import DataError
from segjax.data.labels import LABEL_SETS, VOID, numbered_classes
from segjax.data.loader import eval_batches, padded_sizes, rare_class_sampling, train_loader
from segjax.data.pairs import Part
from segjax.data.resize import resize_nearest

CLASSES = numbered_classes(("a", "b", "c"))


class Memory:
    """A source in memory: image i is filled with i, its label with i modulo 2."""

    label_set, channels, skipped, absent, digest = LABEL_SETS["road_debris"], 1, (), (), "drawn"
    value_range, dtype, unsure_turns, void, pixels, notes = None, "uint8", 0, None, None, ()

    def __init__(self, sizes):
        self.sizes = sizes
        self.native_size = sizes[0] if len(set(sizes)) == 1 else None

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, i):
        i = int(i)
        if not 0 <= i < len(self):
            raise IndexError(i)
        shape = self.sizes[i]
        image, label = np.full((*shape, 1), i, np.uint8), np.full(shape, i % 2, np.uint8)
        return {"image": image, "label": label, "name": self.name(i)}

    def name(self, i):
        return f"image {i}"


@pytest.fixture
def ten():
    return Memory([(4, 6)] * 10)


def take(loader, count):
    return [next(loader) for _ in range(count)]


def equal(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])


def test_train_loader_every_image_once_per_epoch_in_a_new_order(ten):
    batches = take(train_loader(ten, global_batch_size=4, seed=0, size=None), 15)  # six epochs; 4 does not divide 10
    names = [name for batch in batches for name in batch["name"]]
    epochs = [tuple(names[start : start + 10]) for start in range(0, 60, 10)]
    assert {frozenset(Counter(epoch).items()) for epoch in epochs} == {frozenset((f"image {i}", 1) for i in range(10))}
    assert len(set(epochs)) == 6


def test_loaders_of_a_batch_larger_than_the_split():
    three = Memory([(4, 6)] * 3)
    batch = next(train_loader(three, global_batch_size=7, seed=0, size=None))
    assert sorted(Counter(batch["name"].tolist()).values()) == [2, 2, 3]
    (batch,) = evaluate(three, 7)
    assert batch["name"].tolist() == ["image 0", "image 1", "image 2", "", "", "", ""]


def test_train_loader_batch_fields_match(ten):
    batch = next(train_loader(ten, global_batch_size=4, seed=0, size=None))
    numbers = [int(name.split()[1]) for name in batch["name"]]
    assert batch["image"].dtype == batch["label"].dtype == np.uint8
    assert batch["image"].shape == (4, 4, 6, 1)
    assert batch["image"][:, 0, 0, 0].tolist() == numbers
    assert batch["label"][:, 0, 0].tolist() == [number % 2 for number in numbers]


def test_train_loader_index_is_the_position_in_the_stream(ten):
    batches = take(train_loader(ten, global_batch_size=4, seed=0, size=None), 5)
    assert np.concatenate([batch["index"] for batch in batches]).tolist() == list(range(20))
    assert batches[0]["index"].dtype == np.uint32


def test_train_loader_seed(ten):
    def epochs(seed):
        loader = train_loader(ten, global_batch_size=10, seed=seed, size=None)
        return [tuple(batch["name"]) for batch in take(loader, 4)]

    assert epochs(0) == epochs(0)
    assert not set(epochs(0)) & set(epochs(1))


@pytest.mark.parametrize("hosts", [2, 4])
def test_train_loader_hosts_share_the_global_batch(ten, hosts):
    whole = take(train_loader(ten, global_batch_size=4, seed=0, size=None), 6)
    parts = [
        take(train_loader(ten, global_batch_size=4, seed=0, size=None, process_index=i, process_count=hosts), 6)
        for i in range(hosts)
    ]
    for step, batch in enumerate(whole):
        equal(batch, {key: np.concatenate([part[step][key] for part in parts]) for key in batch})


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_train_loader_restored_position(ten, taken):
    loader = train_loader(ten, global_batch_size=4, seed=0, size=None)
    take(loader, taken)
    state = json.loads(json.dumps(loader.get_state()))
    rest = take(loader, 4)
    restored = train_loader(ten, global_batch_size=4, seed=0, size=None)
    take(restored, 2)
    restored.set_state(state)
    for one, other in zip(rest, take(restored, 4), strict=True):
        equal(one, other)


def test_train_loader_restored_position_with_other_hosts_and_batches(ten):
    loader = train_loader(ten, global_batch_size=4, seed=0, size=None)
    take(loader, 3)
    state, batch = loader.get_state(), next(loader)
    other = train_loader(ten, global_batch_size=2, seed=0, size=None, process_index=1, process_count=2)
    other.set_state(state)
    assert [int(part["index"][0]) for part in take(other, 2)] == [13, 15]
    assert next(other)["name"].shape == (1,)
    assert batch["index"].tolist() == [12, 13, 14, 15]


def test_train_loader_draws_images_by_their_probabilities(ten):
    probabilities = np.array([0, 0.5, 0, 0, 0.3, 0, 0, 0, 0, 0.2])
    batches = take(train_loader(ten, global_batch_size=50, seed=0, size=None, probabilities=probabilities), 20)
    counts = Counter(name for batch in batches for name in batch["name"])
    found = np.array([counts[f"image {i}"] for i in range(10)]) / 1000
    np.testing.assert_allclose(found, probabilities, atol=0.05)
    np.testing.assert_array_equal(np.concatenate([batch["index"] for batch in batches]), np.arange(1000))


def test_train_loader_draws_the_same_images_after_a_restart_and_on_two_hosts(ten):
    def loader(seed=0, **hosts):
        return train_loader(ten, global_batch_size=6, seed=seed, size=None, probabilities=np.full(10, 0.1), **hosts)

    batches, restored = take(whole := loader(), 3), loader()
    restored.set_state(whole.get_state())
    equal(next(restored), following := next(whole))
    shares = [take(loader(process_index=i, process_count=2), 4)[3]["name"] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(shares), following["name"])
    assert batches[0]["name"].tolist() != next(loader(seed=1))["name"].tolist()


def test_rare_class_sampling_equals_daformer():
    counts = np.array([[900, 100, 0, 0], [1000, 0, 0, 0], [500, 400, 100, 0], [0, 0, 0, 0]])
    f, temperature = counts.sum(axis=0) / counts.sum(), 0.5
    of_class = np.exp((1 - f[:3]) / temperature)  # the last class does not occur
    of_class /= of_class.sum()
    expected = [of_class[0] / 3 + of_class[1] / 2, of_class[0] / 3, of_class[0] / 3 + of_class[1] / 2 + of_class[2], 0]
    np.testing.assert_allclose(rare_class_sampling(counts, temperature), expected, rtol=1e-12)
    assert rare_class_sampling(counts, 1e-3)[2] == pytest.approx(1)


def test_train_loader_refuses_the_position_of_another_stream(ten):
    state = train_loader(ten, global_batch_size=4, seed=0, size=None).get_state()
    with pytest.raises(ValueError, match="of another stream: its seed is 0, this loader's is 1"):
        train_loader(ten, global_batch_size=4, seed=1, size=None).set_state(state)
    with pytest.raises(ValueError, match="of another stream: its examples is 10, this loader's is 3"):
        train_loader(Memory([(2, 2)] * 3), global_batch_size=1, seed=0, size=None).set_state(state)
    ten.digest = "repainted"
    with pytest.raises(ValueError, match="of another stream: its data is 'drawn', this loader's is 'repainted'"):
        train_loader(ten, global_batch_size=4, seed=0, size=None).set_state(state)


def test_folder_source_pickle_is_small(make, tmp_path):
    source = open_folder(make.folder(tmp_path, 40, (8, 10)), "train", CLASSES)
    assert len(pickle.dumps(source)) < 5_000


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("part", ["images", "masks"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), r"cannot be read \(.*No such file"),
        (lambda file: os.truncate(file, 40), r"has changed since it was verified; .* got 40 bytes that differ"),
    ],
    ids=["deleted", "truncated"],
)
def test_train_loader_file_damaged_while_training(make, tmp_path, workers, part, damage, message):
    source = open_folder(make.folder(tmp_path, 4, (8, 10)), "train", CLASSES)
    (file,) = (tmp_path / part).glob(f"{source.name(1)}.*")
    damage(file)
    loader = train_loader(source, global_batch_size=3, seed=0, size=None, workers=workers)
    start = time.monotonic()
    with pytest.raises(DataError, match=rf"{file}: {message}"):
        next(loader)
    assert time.monotonic() - start < 30
    loader.close()


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_eval_batches_damaged_file(make, tmp_path, workers):
    source = open_folder(make.folder(tmp_path, 4, (8, 10)), "train", CLASSES)
    os.truncate(tmp_path / "masks" / f"{source.name(1)}.png", 40)
    with pytest.raises(DataError, match=rf"masks/{source.name(1)}.png: has changed since it was verified"):
        evaluate(source, 3, workers=workers)


@pytest.mark.slow
@pytest.mark.parametrize("piped", [False, True], ids=["a script without a main guard", "standard input"])
def test_train_loader_workers_of(make, tmp_path, process_environment, piped):
    script, folder = tmp_path / "script.py", make.folder(tmp_path / "data", 4, (8, 10))
    script.write_text(
        "from segjax.data.datasets import open_folder\n"
        "from segjax.data.loader import train_loader\n"
        "from segjax.data.labels import numbered_classes\n"
        f"source = open_folder({str(folder)!r}, 'train', numbered_classes(('a', 'b', 'c')))\n"
        "loader = train_loader(source, global_batch_size=2, seed=0, size=None, workers=1)\n"
        "print(next(loader)['image'].shape)\n"
        "loader.close()\n"
    )
    command = [sys.executable] if piped else [sys.executable, script]
    with script.open() as lines:
        done = subprocess.run(
            command, stdin=lines, env=process_environment, capture_output=True, text=True, timeout=100
        )
    assert (done.stdout, done.returncode) == ("(2, 8, 10, 3)\n", 0), done.stderr


@pytest.mark.slow
def test_train_loader_workers_with_a_cached_function_of_the_script(tmp_path, process_environment):
    """Cached functions are pickled by name, so that a worker has to run the script, which needs a main guard."""
    script = tmp_path / "script.py"
    script.write_text(
        "import functools\n"
        "import numpy as np\n"
        "from segjax.data.labels import LABEL_SETS\n"
        "from segjax.data.loader import train_loader\n\n\n"
        "@functools.cache\n"
        "def read(i):\n"
        "    return np.full((8, 10, 1), i, np.uint8)\n\n\n"
        "class Mine:\n"
        "    label_set, channels, skipped, absent, digest = LABEL_SETS['road_debris'], 1, (), (), 'mine'\n"
        "    native_size = (8, 10)\n"
        "    def __len__(self):\n"
        "        return 4\n"
        "    def __getitem__(self, i):\n"
        "        return {'image': read(int(i)), 'label': read(0)[..., 0], 'name': str(i)}\n\n\n"
        "if __name__ == '__main__':\n"
        "    loader = train_loader(Mine(), global_batch_size=4, seed=0, size=None, workers=1)\n"
        "    print(sorted(next(loader)['image'][:, 0, 0, 0].tolist()))\n"
        "    loader.close()\n"
    )
    done = subprocess.run(
        [sys.executable, script], env=process_environment, capture_output=True, text=True, timeout=100
    )
    assert (done.stdout, done.returncode) == ("[0, 1, 2, 3]\n", 0), done.stderr


@pytest.mark.slow
def test_ended_loaders_free_their_semaphores(make, tmp_path):
    source = open_folder(make.folder(tmp_path, 4, (8, 10)), "train", CLASSES)
    os.truncate(tmp_path / "masks" / f"{source.name(1)}.png", 40)

    def semaphores_after_an_error():
        with pytest.raises(DataError):
            evaluate(source, 3, workers=1)
        return semaphores()

    def semaphores():
        return sum(isinstance(one, SemLock) for one in gc.get_objects())

    gc.collect()
    gc.disable()  # an automatic collection comes too late
    try:
        first = semaphores_after_an_error()
        assert semaphores_after_an_error() <= first
        evaluate(Memory([(8, 10)] * 3), 3, workers=1)
        assert semaphores() < first
    finally:
        gc.enable()


def test_train_loader_resizes_images_by_area_and_labels_by_resize_nearest(make, tmp_path):
    source = open_folder(make.folder(tmp_path), "train", CLASSES)
    batch = next(train_loader(source, global_batch_size=8, seed=0, size=(5, 7)))
    assert batch["image"].shape == (8, 5, 7, 3)
    by_name = {source.name(i): source[i] for i in range(len(source))}
    for image, label, name in zip(batch["image"], batch["label"], batch["name"], strict=True):
        whole = by_name[str(name)]
        np.testing.assert_array_equal(image, cv2.resize(whole["image"], (7, 5), interpolation=cv2.INTER_AREA))
        np.testing.assert_array_equal(label, resize_nearest(whole["label"], (5, 7)))


def test_train_loader_letterboxes_images_and_labels():
    source = Memory([(20, 10), (6, 24), (6, 8)])
    batch = next(train_loader(source, global_batch_size=3, seed=0, size=(6, 8), letterbox=True))
    fitted = {"image 0": [6, 3], "image 1": [2, 8], "image 2": [6, 8]}
    assert dict(zip(batch["name"].tolist(), batch["size"].tolist(), strict=True)) == fitted
    rows = (batch[key] for key in ("image", "label", "size", "name"))
    for image, label, (height, width), name in zip(*rows, strict=True):
        inside, number = np.pad(np.ones((height, width), bool), [(0, 6 - height), (0, 8 - width)]), int(name[-1])
        np.testing.assert_array_equal(image[..., 0], np.where(inside, number, 0))
        np.testing.assert_array_equal(label, np.where(inside, number % 2, VOID))


@pytest.mark.parametrize("native", [(240, 40), (20, 250), (96, 128), (17, 23)], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_train_loader_resizes_images_and_labels_around_the_same_centres(native, axis):
    class Ramp(Memory):  # every pixel is its own coordinate, in the image and in the label
        def __getitem__(self, i):
            ramp = np.indices(native, np.uint8)[axis]
            return super().__getitem__(i) | {"image": ramp[..., None], "label": ramp}

    batch = next(train_loader(Ramp([native]), global_batch_size=1, seed=0, size=(30, 60)))
    image, label = (np.moveaxis(x, axis, 0).mean(1) for x in (batch["image"][0, ..., 0], batch["label"][0]))
    centres = (np.arange(len(label)) + 0.5) * native[axis] / len(label) - 0.5
    np.testing.assert_allclose(image[1:-1], centres[1:-1], atol=1)  # rounded, by the second call too
    np.testing.assert_allclose(label, centres, atol=0.5)


def test_train_loader_different_sizes_without_size():
    source = Memory([(4, 6), (5, 6)])
    with pytest.raises(ValueError, match="have different sizes; expected a size to resize them to, got None"):
        train_loader(source, global_batch_size=1, seed=0, size=None)


def test_loaders_invalid_hosts(ten):
    with pytest.raises(ValueError, match="3 hosts cannot share a global batch of 4 evenly"):
        train_loader(ten, global_batch_size=4, seed=0, size=None, process_count=3)
    with pytest.raises(ValueError, match=r"expected a process_index in 0..1; got 2"):
        eval_batches(ten, global_batch_size=4, process_index=2, process_count=2)


def evaluate(source, batch, **more):
    return list(eval_batches(source, global_batch_size=batch, **more))


def test_eval_batches_fills_the_last_batch(ten):
    batches = evaluate(ten, 4)
    assert [batch["where"].tolist() for batch in batches] == [[True] * 4, [True] * 4, [True, True, False, False]]
    assert {batch["image"].shape for batch in batches} == {(4, 4, 6, 1)}
    assert (batches[-1]["label"][2:] == VOID).all()
    assert batches[-1]["name"].tolist() == ["image 8", "image 9", "", ""]


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_eval_batches_every_image_once_over_all_hosts(ten, hosts):
    shards = [evaluate(ten, 8, process_index=i, process_count=hosts) for i in range(hosts)]
    assert {len(shard) for shard in shards} == {2}
    names = [name for shard in shards for batch in shard for name in batch["name"][batch["where"]]]
    assert Counter(names) == {f"image {i}": 1 for i in range(10)}


@pytest.mark.parametrize(("count", "expected"), [(1, [5]), (2, [2, 7]), (3, [1, 5, 8]), (10, list(range(10)))])
def test_eval_batches_of_a_part_evenly_spread(ten, count, expected):
    part = pickle.loads(pickle.dumps(Part(ten, count)))
    (batch,) = evaluate(part, 10)
    assert batch["name"][batch["where"]].tolist() == [part.name(i) for i in range(count)]
    assert batch["image"][batch["where"], 0, 0, 0].tolist() == expected
    assert batch["index"].tolist() == [*range(count), *[count] * (10 - count)]
    assert part.label_set == ten.label_set


def test_eval_batches_pads_images_and_labels_of_different_sizes():
    source = Memory([(4, 6), (5, 3), (2, 2), (3, 5)])
    batches = evaluate(source, 2)
    assert [batch["image"].shape for batch in batches] == [(2, 2, 2, 1), (2, 4, 6, 1), (2, 5, 4, 1)]
    assert [batch["index"].tolist() for batch in batches] == [[2, 4], [0, 3], [1, 4]]
    assert [batch["size"].tolist() for batch in batches] == [[[2, 2], [2, 2]], [[4, 6], [3, 5]], [[5, 3], [5, 4]]]
    for batch in batches:
        assert batch["label"].shape == batch["image"].shape[:3]
        assert batch["where"].tolist() == [index < 4 for index in batch["index"]]
        for row, index in enumerate(batch["index"]):
            height, width = batch["size"][row]
            inside = np.zeros(batch["label"].shape[1:], bool)
            inside[:height, :width] = index < 4
            np.testing.assert_array_equal(batch["image"][row, ..., 0], np.where(inside, index, 0))
            np.testing.assert_array_equal(batch["label"][row], np.where(inside, index % 2, VOID))


MIXED = Memory([(400, 600), *[(4, 6)] * 30, (300, 10), *[(30, 40)] * 5])


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_eval_batches_have_at_most_max_pixels_per_device_or_one_image(devices):
    batches = evaluate(MIXED, 8, devices=devices, max_pixels=2**12)
    shapes = {batch["label"].shape for batch in batches}
    assert shapes == {(8, 4, 8), (min(8, 2 * devices), 32, 64), (devices, 400, 16), (devices, 400, 600)}


@pytest.mark.parametrize("hosts", [2, 4])
def test_eval_batches_have_the_same_shapes_on_all_hosts(hosts):
    options = {"devices": 4, "max_pixels": 2**12, "process_count": hosts}
    shards = [evaluate(MIXED, 8, process_index=i, **options) for i in range(hosts)]
    shapes = [[batch["label"].shape for batch in shard] for shard in shards]
    assert all(shape == shapes[0] for shape in shapes)
    indices = [index for shard in shards for batch in shard for index in batch["index"][batch["where"]]]
    assert sorted(indices) == list(range(37))


def test_padded_sizes_of_a_thousand_sizes_are_few():
    rng = np.random.default_rng(0)
    sizes = [tuple(size) for size in rng.integers(200, 2000, (1000, 2)).tolist()]
    padded = padded_sizes(sizes)
    assert len(set(padded)) <= 16
    for size, to in zip(sizes, padded, strict=True):
        assert all(n <= m < 2 * n for n, m in zip(size, to, strict=True))


def test_exception_that_cannot_be_sent_to_another_process_is_raised_as_text():
    class Unsendable(Exception):  # of a class that only this function has, as those of a script
        pass

    class Fails(Memory):
        def __getitem__(self, i):
            raise Unsendable("boom")

    loader = train_loader(Fails([(4, 6)] * 3), global_batch_size=2, seed=0, size=None)
    with pytest.raises(RuntimeError, match="Unsendable: boom"):
        next(loader)
    loader.close()


def test_train_loader_in_a_process_that_may_not_start_others_reads_by_itself(monkeypatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # as in a Pool
    here, there = (
        train_loader(Memory([(4, 6)] * 3), global_batch_size=2, seed=0, size=None, workers=workers)
        for workers in (0, 1)
    )
    assert next(here)["name"].tolist() == next(there)["name"].tolist()
    assert multiprocessing.active_children() == []
    here.close()
    there.close()
