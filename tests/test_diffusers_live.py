"""Against diffusers itself, both ways; skipped where torch and diffusers are not installed.

pip install torch diffusers transformers peft    # beside this project's requirements
pytest tests/test_diffusers_live.py
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

MISSING = "parity with diffusers needs: pip install torch diffusers transformers"
torch = pytest.importorskip("torch", reason=MISSING)
diffusers = pytest.importorskip("diffusers", reason=MISSING)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from safetensors.numpy import load_file, save_file  # noqa: E402
from test_adapters import as_if_trained  # noqa: E402
from test_pipelines import FIELDS, TEXT, UNCONDITIONAL, convert_ok, tiny_run  # noqa: E402
from tokenizers.pre_tokenizers import ByteLevel  # noqa: E402

import ldm_jax  # noqa: E402
from ldm_jax.base import record as record_lib  # noqa: E402
from ldm_jax.data import bytepairs  # noqa: E402
from ldm_jax.diffusion import samplers  # noqa: E402
from ldm_jax.runs import conditions as conditions_of  # noqa: E402
from ldm_jax.runs import conversion, kinds, opened  # noqa: E402
from ldm_jax.runs import frozen as frozen_lib  # noqa: E402
from ldm_jax.weights import lora  # noqa: E402

NOISE = np.random.default_rng(1).normal(size=(2, 8, 8, 2)).astype(np.float32)
SIDES = ("", "null_")  # of guidance, as the names of fields begin
GRIDS = [("legacy", 20), ("trailing", 4)]


def theirs(array):
    """Channels first, a torch tensor."""
    return torch.from_numpy(np.asarray(array)).movedim(-1, 1).contiguous()


def ours(tensor):
    return tensor.detach().movedim(1, -1).numpy()


def close(a, b, atol):
    print(f"largest difference {np.max(np.abs(np.asarray(a) - np.asarray(b))):.1e}")
    np.testing.assert_allclose(a, b, atol=atol)


def sampled(pipe, steps, monkeypatch, noise):
    """An LDMPipeline's images in [-1, 1] from a given x_T."""
    module = sys.modules[type(pipe).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: theirs(noise))
    images = pipe(batch_size=len(noise), num_inference_steps=steps, output_type="np").images
    return 2 * images - 1


def guided(pipe, steps, tokens, null, noise):
    """A StableDiffusionPipeline's images in [-1, 1] from a given x_T and embeddings."""
    images = pipe(
        prompt_embeds=torch.from_numpy(np.asarray(tokens)),
        negative_prompt_embeds=torch.from_numpy(np.asarray(null)),
        latents=theirs(noise),
        guidance_scale=3.0,
        num_inference_steps=steps,
        output_type="np",
    ).images
    return 2 * images - 1


def without_text_encoder(folder):
    return diffusers.StableDiffusionPipeline.from_pretrained(
        folder, text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None
    )


def export(tmp_path, first, conditioners, **changes):
    beneath = tiny_run(tmp_path / "first", first)
    source = tiny_run(tmp_path / "ldm", "ldm", conditioners, first_stage=str(beneath), **changes)
    convert_ok("export", f"--run={source}", f"--out={tmp_path / 'out'}")
    return ldm_jax.load(source), tmp_path / "out"


@pytest.mark.parametrize(("spacing", "steps"), GRIDS)
def test_an_exported_unconditional_run_is_an_ldm_pipeline(tmp_path, monkeypatch, spacing, steps):
    run, out = export(tmp_path, "vq", {}, **UNCONDITIONAL | {"sample.spacing": spacing})
    images = sampled(diffusers.LDMPipeline.from_pretrained(out), steps, monkeypatch, NOISE)
    want = run.sample(2, steps=steps, spacing=spacing, noise=NOISE)
    close(images, want, 1e-4)


@pytest.mark.parametrize("field", ["class", "text_ids"])
@pytest.mark.parametrize(("spacing", "steps"), GRIDS)
def test_an_exported_guided_run_is_a_stable_diffusion_pipeline(tmp_path, field, spacing, steps):
    kwargs = dict(name="class", num_classes=5, width=8) if field == "class" else TEXT
    schedule = {"process.schedule": "rectified" if field == "class" else "scaled_linear"}
    changes = {"sample.spacing": spacing} | schedule
    run, out = export(tmp_path, "first_stage", {field: kwargs}, **changes)
    fields = FIELDS[field] | ({"null_class": np.array([5, 5])} if field == "class" else {})
    tokens, null = (
        run._cond({field: fields[prefix + field]}, 2, (16, 16)).tokens for prefix in ("", "null_")
    )
    images = guided(without_text_encoder(out), steps, tokens, null, NOISE)
    draw = dict(steps=steps, guidance=3.0, spacing=spacing, noise=NOISE, cond=fields)
    close(images, run.sample(2, **draw), 1e-4)


def test_adapters_are_low_rank_updates_of_a_pipeline(tmp_path):
    """One, and two with weights; and what kohya's scripts would write of it, read by both."""
    pytest.importorskip("peft", reason=f"{MISSING} peft")
    run, out = export(tmp_path, "first_stage", {"text_ids": TEXT})
    base, fields = tmp_path / "ldm", FIELDS["text_ids"]
    tokens = [run._cond({"text_ids": fields[f"{p}text_ids"]}, 2, (16, 16)).tokens for p in SIDES]
    targets = {"one": ("unet/.*attn",), "two": ("unet/",)}
    for seed, (name, own) in enumerate(targets.items()):
        as_if_trained(base, tmp_path / name, seed, rank=3, alpha=1.5, targets=own)
        convert_ok("export", f"--run={tmp_path / name}", f"--out={tmp_path / name}_file")

    def compare(load, adapters):
        pipe = without_text_encoder(out)
        load(pipe)
        opened_run = opened.load(base, adapters=adapters)
        how = dict(steps=4, guidance=3.0, spacing=run.config.sample.spacing, noise=NOISE)
        close(guided(pipe, 4, *tokens, NOISE), opened_run.sample(2, cond=fields, **how), 1e-4)

    def both(pipe):
        for name in targets:
            pipe.load_lora_weights(tmp_path / f"{name}_file", adapter_name=name)
        pipe.set_adapters(list(targets), [0.7, 0.5])

    compare(
        lambda pipe: pipe.load_lora_weights(tmp_path / "two_file"), {str(tmp_path / "two"): 1.0}
    )
    compare(both, {str(tmp_path / "one"): 0.7, str(tmp_path / "two"): 0.5})

    state, kohya = {}, tmp_path / "kohya.safetensors"
    for key, array in load_file(tmp_path / "two_file" / lora.FILE).items():
        layer, part = key.removeprefix("unet.").removesuffix(".weight").rsplit(".lora_", 1)
        name = f"lora_unet_{layer.replace('.', '_')}"
        state[f"{name}.{dict(A='lora_down', B='lora_up')[part]}.weight"] = array
        state[f"{name}.alpha"] = np.array(2.0, np.float32)
    save_file(state, kohya)
    convert_ok("lora", f"--checkpoint={kohya}", f"--run={base}", f"--out={tmp_path / 'theirs'}")
    compare(lambda pipe: pipe.load_lora_weights(kohya), {str(tmp_path / "theirs"): 1.0})


def test_a_control_of_classes_is_a_control_net(tmp_path):
    """Exported, its class embedding with it, and read by diffusers; both with their own UNet."""
    kwargs = {"class": dict(name="class", num_classes=5, width=8)}
    kwargs["vector"] = dict(name="class", num_classes=5, width=64, place="vector")
    run, out = export(tmp_path, "first_stage", kwargs)
    record = record_lib.Record(tmp_path / "ldm")
    config = record.config
    with config.unlocked():
        config.adapt.update(name="control", base=str(tmp_path / "ldm"))
        config.conditioners.control = dict(name="control", width=16, widths=(4, 6))
    own = record_lib.Record(tmp_path / "control")
    own.path.mkdir()
    own.write_config(config)
    kind, rng = kinds.of(config), np.random.default_rng(4)
    fill = lambda x: (rng.normal(size=x.shape) / np.prod(x.shape[:-1]) ** 0.5).astype(np.float32)
    params = {"denoiser": jax.tree.map(fill, kind.shapes(config)["denoiser"])}
    conversion.save(own.path, 0, {"params": params, "ema": {}})
    _, origin = frozen_lib.read(kind.frozen(config), {}, "it")
    own.write(latents=record.latents | {"origin": origin})
    convert_ok("export", f"--run={own.path}", f"--out={tmp_path / 'theirs'}")

    control = diffusers.ControlNetModel.from_pretrained(tmp_path / "theirs")
    unet = diffusers.UNet2DConditionModel.from_pretrained(out / "unet")
    ids, t, hint = np.array([1, 4]), np.array([3, 700]), rng.random((2, 16, 16, 3), np.float32)
    found = ldm_jax.load(own.path)
    cond = {"class": ids, "hint": hint}
    given = theirs(NOISE), torch.from_numpy(t), torch.from_numpy(np.asarray(tokens_of(found, cond)))
    labels = dict(class_labels=torch.from_numpy(ids))
    with torch.no_grad():
        down, middle = control(*given, controlnet_cond=theirs(hint), return_dict=False, **labels)
        skips = dict(down_block_additional_residuals=down, mid_block_additional_residual=middle)
        eps = unet(*given, **labels, **skips).sample
    close(ours(eps), found.denoise(NOISE, t, cond), 1e-5)
    assert np.abs(ours(eps) - np.asarray(run.denoise(NOISE, t, {"class": ids}))).max() > 1e-2


def tokens_of(run, cond):
    return run._cond(cond, 2, (16, 16)).tokens


def test_an_exported_class_vector_is_a_class_embedding(tmp_path):
    kwargs = {"class": dict(name="class", num_classes=5, width=64, place="vector")}
    run, out = export(tmp_path, "vq", kwargs, **UNCONDITIONAL)
    unet = diffusers.UNet2DModel.from_pretrained(out / "unet")
    ids, t = np.array([2, 5]), np.array([3, 700])
    eps = unet(theirs(NOISE), torch.from_numpy(t), class_labels=torch.from_numpy(ids)).sample
    close(ours(eps), run.denoise(NOISE, t, {"class": ids}), 1e-5)


def randomised(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            spread = 1 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.3
            p.copy_(spread * torch.randn(p.shape, generator=generator))
    return model.eval()


SCHEDULER = dict(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear")
SCHEDULER |= dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def test_their_ldm_pipeline_becomes_a_run(tmp_path, monkeypatch):
    vqvae = diffusers.VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
        num_vq_embeddings=16,
        scaling_factor=0.3,
    )
    unet = diffusers.UNet2DModel(
        in_channels=2,
        out_channels=2,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=32,
        sample_size=8,
    )
    pipe = diffusers.LDMPipeline(
        vqvae=randomised(vqvae),
        unet=randomised(unet),
        scheduler=diffusers.DDIMScheduler(**SCHEDULER),
    )
    pipe.save_pretrained(tmp_path / "pipe")
    convert_ok("diffusers", f"--checkpoint={tmp_path / 'pipe'}", f"--out={tmp_path / 'run'}")
    run = ldm_jax.load(tmp_path / "run")
    images = sampled(pipe, 20, monkeypatch, NOISE)
    want = run.sample(2, steps=20, spacing=run.config.sample.spacing, noise=NOISE)
    close(images, want, 1e-3)


def stable_diffusion(tmp_path, kind=diffusers.StableDiffusionPipeline, scheduler=None, **changes):
    """A pipeline of that kind with its text encoder and tokenizer, small and random.

    changes: of the UNet.
    """
    import transformers

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{c}</w>" for c in letters), bytepairs.START, bytepairs.END]
    words = tmp_path / "words"
    words.mkdir()
    (words / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(words / "vocab.json"), str(words / "merges.txt"), model_max_length=20
    )
    clip = transformers.CLIPTextConfig(
        vocab_size=514,
        hidden_size=12,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=20,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
    )
    unet = diffusers.UNet2DConditionModel(
        in_channels=2,
        out_channels=2,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=(2, 4),
        sample_size=8,
        **changes,
    )
    return kind(
        vae=randomised(vae),
        unet=randomised(unet),
        scheduler=scheduler or diffusers.DDIMScheduler(**SCHEDULER),
        text_encoder=randomised(transformers.CLIPTextModel(clip)),
        tokenizer=tokenizer,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def prompted(pipe, prompts):
    images = pipe(
        prompts,
        latents=theirs(NOISE),
        guidance_scale=4.0,
        num_inference_steps=10,
        output_type="np",
    ).images
    return 2 * images - 1


def test_a_stable_diffusion_folder_is_sampled_from_prompts_and_goes_back(tmp_path):
    """A text, an empty one and one that is cut, through their tokenizer, encoder, UNet and VAE."""
    pytest.importorskip("transformers", reason=MISSING)
    pipe = stable_diffusion(tmp_path)
    pipe.save_pretrained(tmp_path / "pipe")
    convert_ok("diffusers", f"--checkpoint={tmp_path / 'pipe'}", f"--out={tmp_path / 'there'}")
    (tmp_path / "there").rename(tmp_path / "run")  # what lies in a run is found wherever it is
    run = ldm_jax.load(tmp_path / "run")
    conditions = conditions_of.make(run.config)
    how = dict(steps=10, guidance=4.0, spacing=run.config.sample.spacing, noise=NOISE)
    for prompts in (["a Red  circle, 2", ""], ["blue" * 20, "it's a cross"]):
        drawn = run.sample(2, cond=conditions.of_prompts(prompts), **how)
        close(prompted(pipe, prompts), drawn, 1e-4)
    convert_ok("export", f"--run={tmp_path / 'run'}", f"--out={tmp_path / 'back'}")
    back = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "back")
    np.testing.assert_allclose(prompted(back, prompts), prompted(pipe, prompts), atol=1e-4)


def same_noise(monkeypatch, shape):
    """LCMScheduler draws what `run.sample(len(NOISE), seed=0)` does, call after call."""
    keys = samplers.image_keys(0, jnp.arange(len(NOISE)))
    calls = iter(range(50))
    draw = lambda *args, **kwargs: theirs(samplers.step_noise(keys, next(calls), shape))
    monkeypatch.setattr(diffusers.schedulers.scheduling_lcm, "randn_tensor", draw)


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_latent_consistency_model_is_sampled_from_prompts_and_goes_back(
    tmp_path, monkeypatch, steps
):
    """Of one network row whatever the guidance, on the grid of the 50 timesteps that it knows."""
    kind = diffusers.LatentConsistencyModelPipeline
    scheduler = diffusers.LCMScheduler(beta_start=0.0015, beta_end=0.0195)
    pipe = stable_diffusion(tmp_path, kind, scheduler, time_cond_proj_dim=256)
    pipe.save_pretrained(tmp_path / "pipe")
    convert_ok("diffusers", f"--checkpoint={tmp_path / 'pipe'}", f"--out={tmp_path / 'run'}")
    run = ldm_jax.load(tmp_path / "run")
    sample, prompts = run.config.sample, ["a Red  circle, 2", ""]
    assert (sample.sampler, sample.spacing, sample.steps, sample.guidance) == (
        *("consistency", "lcm", 4),
        8.5,
    )
    cond = conditions_of.make(run.config).of_prompts(prompts)
    for guidance in (1.0, 7.5):
        how = dict(guidance_scale=guidance, num_inference_steps=steps, output_type="np")

        def prompted(pipe, how=how):
            same_noise(monkeypatch, NOISE.shape[1:])
            return 2 * pipe(prompts, latents=theirs(NOISE), **how).images - 1

        how = dict(sampler="consistency", spacing="lcm", noise=NOISE, cond=cond)
        want = prompted(pipe)
        close(run.sample(2, steps=steps, guidance=guidance, **how), want, 1e-4)
    convert_ok("export", f"--run={tmp_path / 'run'}", f"--out={tmp_path / 'back'}")
    back = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "back")
    assert isinstance(back, kind)
    np.testing.assert_allclose(prompted(back), want, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("told", [True, False])  # the latter on a schedule of listed betas
def test_an_exported_student_draws_what_the_run_draws(tmp_path, monkeypatch, told, steps):
    given = {"class": dict(name="class", num_classes=5, width=8)}
    if told:
        given["guidance"] = dict(name="scalar", width=16, bounds=(1.0, 6.0))
    schedule = {} if told else {"process.schedule": "rectified"}
    run, out = export(tmp_path, "first_stage", given, **STUDENT | schedule)
    index = json.loads((out / "model_index.json").read_text())
    kind = "LatentConsistencyModelPipeline" if told else "StableDiffusionPipeline"
    assert index["_class_name"] == kind
    parts = dict(text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None)
    pipe = getattr(diffusers, kind).from_pretrained(out, **parts)
    tokens = run._cond(FIELDS["class"], 2, (16, 16), run.model.tell(2)).tokens
    guidance = 4.0 if told else 1.0
    same_noise(monkeypatch, NOISE.shape[1:])
    images = pipe(
        prompt_embeds=torch.from_numpy(np.asarray(tokens)),
        latents=theirs(NOISE),
        guidance_scale=guidance,
        num_inference_steps=steps,
        output_type="np",
    ).images
    how = dict(sampler="consistency", guidance=guidance, noise=NOISE, cond=FIELDS["class"])
    close(2 * images - 1, run.sample(2, steps=steps, **how), 1e-4)
    t, own = np.array([3, 700]), {"class": np.array([1, 4])}
    features = dict(timestep_cond=w_of(pipe, guidance, len(t))) if told else {}
    with torch.no_grad():
        net = pipe.unet(theirs(NOISE), torch.from_numpy(t), torch.tensor(tokens), **features)
    close(ours(net.sample), run.denoise(NOISE, t, own, guidance if told else None), 1e-5)


def w_of(pipe, guidance, b):
    """As LatentConsistencyModelPipeline tells its network the guidance."""
    w = torch.tensor(guidance - 1.0).repeat(b)
    return pipe.get_guidance_scale_embedding(w, embedding_dim=pipe.unet.config.time_cond_proj_dim)


STUDENT = {"sample.sampler": "consistency", "distil.method": "consistency"}


def test_an_exported_unconditional_student_is_an_ldm_pipeline(tmp_path, monkeypatch):
    run, out = export(tmp_path, "vq", {}, **UNCONDITIONAL | STUDENT)
    same_noise(monkeypatch, NOISE.shape[1:])
    images = sampled(diffusers.LDMPipeline.from_pretrained(out), 4, monkeypatch, NOISE)
    close(images, run.sample(2, sampler="consistency", steps=4, noise=NOISE), 1e-4)


def test_an_exported_student_of_pixels_is_a_ddpm_pipeline(tmp_path, monkeypatch):
    more = UNCONDITIONAL | STUDENT | {"first_stage": "identity", "sample.clip": "1.0"}
    source = tiny_run(tmp_path / "ldm", "ldm", {}, **more)
    plain = {"scale": 1.0, "origin": {"digest": "identity"}}
    (source / "latents.json").write_text(json.dumps(plain))
    convert_ok("export", f"--run={source}", f"--out={tmp_path / 'out'}")
    noise = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
    same_noise(monkeypatch, noise.shape[1:])
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    images = sampled(pipe, 4, monkeypatch, noise)
    run = ldm_jax.load(source)
    close(images, run.sample(2, sampler="consistency", steps=4, noise=noise), 1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_their_stable_diffusion_parts_become_a_run(tmp_path, prediction):
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
    )
    unet = diffusers.UNet2DConditionModel(
        in_channels=2,
        out_channels=2,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=(2, 4),
        use_linear_projection=prediction == "v_prediction",
        sample_size=8,
    )
    zero = prediction == "v_prediction"
    grid = dict(timestep_spacing="trailing", set_alpha_to_one=True) if zero else {}
    scheduler = SCHEDULER | dict(prediction_type=prediction, rescale_betas_zero_snr=zero) | grid
    pipe = diffusers.StableDiffusionPipeline(
        vae=randomised(vae),
        unet=randomised(unet),
        scheduler=diffusers.DDIMScheduler(**scheduler),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(tmp_path / "pipe")
    convert_ok("diffusers", f"--checkpoint={tmp_path / 'pipe'}", f"--out={tmp_path / 'run'}")
    run = ldm_jax.load(tmp_path / "run")
    tokens, null = np.random.default_rng(3).normal(size=(2, 2, 5, 12)).astype(np.float32)
    images = guided(pipe, 20, tokens, null, NOISE)
    cond = {"tokens": tokens, "null_tokens": null}
    draw = dict(steps=20, guidance=3.0, spacing=run.config.sample.spacing, noise=NOISE, cond=cond)
    close(images, run.sample(2, **draw), 1e-3)


def dit(**changes):
    """A DiTPipeline, small and random; every block embeds the timestep in its own way."""
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
    )
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        num_layers=3,
        sample_size=8,
        num_embeds_ada_norm=5,
        **changes,
    )
    scheduler = diffusers.DDIMScheduler(**SCHEDULER)
    return diffusers.DiTPipeline(randomised(transformer), randomised(vae), scheduler)


def tied(pipe):
    """All blocks with the first one's embeddings, as the published weights have them."""
    blocks = pipe.transformer.transformer_blocks
    for block in blocks[1:]:
        block.norm1.emb.load_state_dict(blocks[0].norm1.emb.state_dict())
    return pipe


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("outputs", [2, 4])
def test_their_dit_becomes_a_run_and_goes_back(tmp_path, monkeypatch, tie, outputs):
    pipe = dit(out_channels=outputs)
    pipe = tied(pipe) if tie else pipe
    pipe.save_pretrained(tmp_path / "pipe")
    convert_ok("diffusers", f"--checkpoint={tmp_path / 'pipe'}", f"--out={tmp_path / 'run'}")
    run = ldm_jax.load(tmp_path / "run")
    ids, t = np.array([2, 5]), np.array([3, 700])  # the last is the null class
    given = dict(timestep=torch.from_numpy(t), class_labels=torch.from_numpy(ids))
    with torch.no_grad():
        want = ours(pipe.transformer(theirs(NOISE), **given).sample)[..., :2]
    close(run.denoise(NOISE, t, {"class": ids}), want, 1e-4)
    drawn = classes_drawn(pipe, monkeypatch)
    how = dict(steps=10, spacing=run.config.sample.spacing, noise=NOISE)
    close(run.sample(2, cond={"class": np.array([1, 4])}, **how), drawn, 1e-4)
    convert_ok("export", f"--run={tmp_path / 'run'}", f"--out={tmp_path / 'back'}")
    close(
        classes_drawn(diffusers.DiTPipeline.from_pretrained(tmp_path / "back"), monkeypatch),
        drawn,
        1e-4,
    )


def test_a_dit_goes_out_with_the_scheduler_of_students(tmp_path, monkeypatch):
    dit().save_pretrained(tmp_path / "pipe")
    flags = [f"--checkpoint={tmp_path / 'pipe'}", f"--out={tmp_path / 'run'}"]
    convert_ok("diffusers", *flags, "--config.sample.sampler=consistency")
    run = ldm_jax.load(tmp_path / "run")
    convert_ok("export", f"--run={tmp_path / 'run'}", f"--out={tmp_path / 'back'}")
    same_noise(monkeypatch, NOISE.shape[1:])
    drawn = classes_drawn(diffusers.DiTPipeline.from_pretrained(tmp_path / "back"), monkeypatch)
    how = dict(sampler="consistency", steps=10, noise=NOISE, cond={"class": np.array([1, 4])})
    close(run.sample(2, **how), drawn, 1e-4)


def classes_drawn(pipe, monkeypatch):
    module = sys.modules[type(pipe).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: theirs(NOISE))
    how = dict(guidance_scale=1.0, num_inference_steps=10, output_type="np")
    return 2 * pipe([1, 4], **how).images - 1


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_their_flow_scheduler_is_euler_on_our_process(tmp_path, shift):
    pipe = dit()
    pipe.save_pretrained(tmp_path / "pipe")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.save_pretrained(tmp_path / "pipe" / "scheduler")
    convert_ok("diffusers", f"--checkpoint={tmp_path / 'pipe'}", f"--out={tmp_path / 'run'}")
    run = ldm_jax.load(tmp_path / "run")

    def flow(transformer, scheduler):
        scheduler.set_timesteps(12)
        x, classes = theirs(NOISE), torch.tensor([1, 4])
        for t in scheduler.timesteps:
            with torch.no_grad():
                velocity = transformer(x, timestep=t.expand(2), class_labels=classes).sample
            x = scheduler.step(velocity, t, x).prev_sample
        return ours(x)

    want = flow(pipe.transformer, scheduler)
    sample = run.config.sample
    how = dict(spacing=sample.spacing, sampler=sample.sampler, noise=NOISE, latents=True)
    drawn = run.sample(2, steps=12, cond={"class": np.array([1, 4])}, **how)
    close(drawn, want, 2e-4)
    convert_ok("export", f"--run={tmp_path / 'run'}", f"--out={tmp_path / 'back'}")
    back = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "back" / "transformer")
    of = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained
    close(flow(back, of(tmp_path / "back" / "scheduler")), want, 1e-5)
