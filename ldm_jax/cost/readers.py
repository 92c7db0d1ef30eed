"""What others take to read the same images: torch's DataLoader, and webdataset in one.

Both decode with Pillow, crop and resize as our own reader does, and collate float batches
[b, 3, h, w]. They read in this process, where the CPU time of an image can be measured, with one
thread of torch's, as a DataLoader's workers have.
torch and webdataset are optional dependencies, which only this module needs.
"""

import io
import itertools
import pathlib
import tarfile
import time

import numpy as np
from PIL import Image

from ldm_jax.base import errors
from ldm_jax.data import images, pipeline, transforms
from ldm_jax.runs import data as data_lib

SHUFFLED = 1_000  # images that webdataset draws the next one from


def measure(config, seconds: float) -> dict:
    """What each reader takes, {reader: {"core_seconds_per_image", "difference"}}; {} without tars.

    difference: the largest one between its first image and ours, of values in [-1, 1]. A reader
    whose package is missing has {"left_out": why}. seconds: that each is measured for, at least.
    """
    if config.data.source != "tar":
        return {}
    source, path = data_lib.open_source(config.data), pathlib.Path(config.data.path)
    chain = transforms.standard(config.data.size, interpolation=config.data.interpolation)
    tars = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    found = {}
    for reader, make in READERS.items():
        try:
            loader, name, first = make([str(tar) for tar in tars], config)
        except ImportError as e:
            found[reader] = {"left_out": f"pip install {e.name}"}
            continue
        ours = next(i for i in range(len(source)) if _stem(source.name(i)) == name)
        pixels, _ = pipeline.load(source, chain, ours, (0, 0))
        difference = np.max(np.abs(np.moveaxis(first.numpy(), 0, -1) - pixels["image"]))
        spent = _clock(loader, seconds) / config.batch_size
        found[reader] = {"core_seconds_per_image": spent, "difference": float(difference)}
    return found


def torch_loader(tars, config):
    """(loader, name of a first image, that image): a data set that finds images by their number.

    It knows where in the tars each begins, as an index file would say.
    """
    import torch

    class Images(torch.utils.data.Dataset):
        def __init__(self):
            self.places, self.names = [], []
            for tar in tars:
                with tarfile.open(tar) as members:
                    kept = [one for one in members if images.is_image_name(one.name)]
                self.places += [(tar, one.offset_data, one.size) for one in kept]
                self.names += [one.name for one in kept]

        def __len__(self):
            return len(self.places)

        def __getitem__(self, i):
            tar, offset, size = self.places[i]
            with open(tar, "rb") as file:
                file.seek(offset)
                return _tensor(Image.open(io.BytesIO(file.read(size))), config.data)

    data = Images()
    how = dict(batch_size=config.batch_size, shuffle=True, drop_last=True)
    return torch.utils.data.DataLoader(data, **how), _stem(data.names[0]), data[0]


def webdataset_loader(tars, config):
    """The same of a data set that streams through the tars."""
    import torch
    import webdataset

    kinds = ";".join(kind[1:] for kind in images.EXTENSIONS)
    make = lambda: webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
    shown = lambda one: (_tensor(one[0], config.data),)
    read = lambda data: data.decode("pil").to_tuple(kinds).map(shown)
    sample = next(iter(make()))
    [first] = next(iter(read(make())))
    loader = torch.utils.data.DataLoader(
        read(make().shuffle(SHUFFLED)), batch_size=config.batch_size, drop_last=True
    )
    return loader, _stem(sample["__key__"]), first


READERS = {"torch": torch_loader, "webdataset": webdataset_loader}


def _stem(name: str) -> str:
    """The name of a file up to its first dot, as webdataset tells images apart."""
    return pathlib.PurePosixPath(name).name.partition(".")[0]


def _tensor(image, data):
    """A centre crop of `data.size` pixels, float32 [3, h, w] in [-1, 1]."""
    import torch

    image = image.convert("RGB")
    side = min(image.size)
    left, top = ((n - side) // 2 for n in image.size)
    image = image.crop((left, top, left + side, top + side))
    filter = transforms.INTERPOLATIONS[data.interpolation]
    image = image.resize((data.size, data.size), filter)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return tensor.to(torch.float32).div_(127.5).sub_(1)


def _clock(loader, seconds: float) -> float:
    """CPU seconds of a batch, over passes through the data."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    if next(batches, None) is None:
        raise errors.UsageError("--against reads whole batches: the data has too few images.")
    begin, work, count = time.perf_counter(), time.process_time(), 0
    while count < 2 or time.perf_counter() - begin < seconds:
        next(batches)
        count += 1
    torch.set_num_threads(threads)
    return (time.process_time() - work) / count
