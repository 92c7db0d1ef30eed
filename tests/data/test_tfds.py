"""TFDS without TensorFlow: a builder that hands over encoded bytes, read through our source."""

import io
import pickle
import sys

import numpy as np
import pytest

from ldm_jax.base import errors
from ldm_jax.data import images, sources

tfds = pytest.importorskip("tensorflow_datasets")


class TinyShapes(tfds.core.GeneratorBasedBuilder):
    """Four pictures."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "caption": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(4):
            data = io.BytesIO(images.encode(picture(i)))
            yield i, {"image": data, "label": i % 2, "caption": f"number {i}"}


def picture(i):
    return np.random.default_rng(i).integers(0, 256, (6, 7, 3)).astype(np.uint8)


def test_tfds_reads_the_same_pixels_without_tensorflow(tmp_path):
    TinyShapes(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    source = sources.open_source("tfds", name="tiny_shapes", path=str(tmp_path))
    assert len(source) == 4 and source.classes == ("cat", "dog")
    source = pickle.loads(pickle.dumps(source))
    for i in range(4):
        record = source[i]
        number = int(record["caption"].split()[1])
        np.testing.assert_array_equal(record["image"], picture(number))
        assert record["class"] == number % 2
    assert "tensorflow" not in sys.modules
    with pytest.raises(errors.UsageError, match="available: train"):
        sources.open_source("tfds", name="tiny_shapes", split="test", path=str(tmp_path))


@pytest.mark.parametrize("name", ["mnist", "no_such_set"])
def test_an_unprepared_set_says_how_to_prepare_it(tmp_path, name):
    with pytest.raises(errors.UsageError, match=f"tfds build {name}") as caught:
        sources.open_source("tfds", name=name, path=str(tmp_path))
    assert "\n" not in str(caught.value)
