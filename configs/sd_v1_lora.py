"""An adapter of Stable Diffusion v1: a concept from tens of pictures with captions, at 512 pixels.

    python -m ldm_jax.convert diffusers --checkpoint=SD_V1_FOLDER --out=runs/sd_v1
    python -m ldm_jax.train --config=configs/sd_v1_lora.py:runs/sd_v1 --workdir=RUN \\
        --config.data.source=tar --config.data.path=PICTURES
    python -m ldm_jax.sample --run=RUN --out=DIR --num=16 --prompts="..."
    python -m ldm_jax.convert export --run=RUN --out=FOLDER    # pytorch_lora_weights.safetensors

Rank 16 of queries, keys, values and outputs, as diffusers' scripts take them: 128 kernels, 3.2M
parameters. Steps and rate are about theirs; not trained by us. --config.adapt.targets=unet/.*attn
takes the transformers' other layers too (192 kernels), and unet/ all, as kohya's LoCon does.
"""

from configs import lora


def get_config(arg=None):
    """arg: the converted run, and pictures as configs/lora.py takes them."""
    config = lora.get_config(arg)
    with config.unlocked():
        config.adapt.update(rank=16, targets=(r"unet/.*_attn/(q|k|v|out)/",))
        config.data.update(size=512, flip=False)
        config.dtype, config.model.remat = "bfloat16", True
        config.batch_size = 4
        config.steps.update(total=1_000, eval=250, checkpoint=250, log=50)
        config.optim.denoiser.update(lr=1e-4, warmup=0, ema=0.0)
    return config
