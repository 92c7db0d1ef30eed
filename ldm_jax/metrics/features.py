"""Feature extractors for distances between sets of images, each with its fixed protocol.

`EXTRACTORS.get(name)(path) -> extract`, with `extract(images [b, h, w, 3] in [-1, 1]) -> [b, d]`.
A Frechet distance on extractor `x` is called `fd_x`; only Inception's pool3 makes a FID.
"""

import jax

from ldm_jax.base.registry import Registry
from ldm_jax.models import mobilenet as mobilenet_model

EXTRACTORS = Registry("feature extractor")


@EXTRACTORS.register("mobilenet")
def mobilenet(path, size=160):
    """MobileNetV2 1.0, 1280 pooled features; its distance is `fd_mobilenet`.

    Protocol: images in [-1, 1] as they are (round to uint8 first, to measure what a file holds),
    resized to size x size without keeping the aspect, bilinear with antialiasing, then ImageNet
    mean and deviation, all in float32.
    """
    params = mobilenet_model.load(path)

    @jax.jit
    def extract(params, images):
        shape = (images.shape[0], size, size, 3)
        resized = jax.image.resize(images, shape, "bilinear", antialias=True)
        return mobilenet_model.features(params, resized)

    return lambda images: extract(params, images)
