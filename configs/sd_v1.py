"""Stable Diffusion v1's UNet: LDM-8 on 77 CLIP ViT-L/14 tokens (model card; official v1-inference).

    python -m ldm_jax.train --config=configs/sd_v1.py --workdir=RUN \\
        --config.first_stage=SD_V1_VAE_RUN --config.data.path=TARS

Records need `tokens`, the text encoder's last hidden states [77, 768]. The variant :captions makes
them of captions as it trains, by openai/clip-vit-large-patch14, which it fetches once (1.7 GB); or
give --config.conditioners.text.weights=FILE and --config.conditioners.text.tokenizer=FOLDER.

v1-1 was trained for 237k steps at 256 pixels (--config.data.size=256), then 194k at 512; v1-2 to
v1-4 go on for 515k, 195k and 225k. Captions were dropped from v1-3 on; here always.
"""

from configs import paper
from ldm_jax.base import config as config_lib


def get_config(arg=None):
    return config_lib.variants(arg, tokens=tokens, captions=captions)


def tokens():
    config = paper.ldm("configs/sd_v1_vae.py", batch_size=2048, lr=1e-4, steps=194_000)
    config.latents.scale = 0.18215
    config.data.update(source="tar", size=512)
    config.model.update(width=320, mult=(1, 2, 4, 4), attention=(4, 2, 1))
    config.model.update(cross_attention=True, heads=8, head_channels=0, remat=True)
    config.conditioners = {"tokens": dict(name="tokens", length=77, width=768)}
    config.process.update(beta_start=0.00085, beta_end=0.012)
    config.loss.update(cond_dropout=0.1)
    config.optim.denoiser.update(warmup=10_000, start=1e-6)
    config.sample.update(steps=50, guidance=7.5)
    return config


def captions():
    config = tokens()
    encoder = "hf:openai/clip-vit-large-patch14"
    clip = dict(name="clip", weights=encoder, tokenizer=encoder, mask_padding=False)
    config.conditioners = {"text": clip}
    return config
