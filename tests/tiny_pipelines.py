"""Small random text-to-image pipelines, and what their networks are asked, written down once more for our own loop."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, PixArtTransformer2DModel, UNet2DConditionModel
from torch import Tensor

from autodiffusion import Model, NoiseSchedule, Plan
from autodiffusion._sampling.sampling import Beginnings, Cost, walk

STOCK: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
"""The noise schedule of Stable Diffusion."""

BLOCKS: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "norm_num_groups": 8,
    "attention_head_dim": 2,
}
XL: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 16 + 6 * 8,
    "use_linear_projection": True,
}


def louder(network: Any) -> Any:
    """So that what is asked for matters."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "attn2.to_" in name or name == "conv_out.weight" or name.startswith("add_embedding"):
                parameter.mul_(4)
    return network.eval()


@functools.cache
def unet(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    ups = {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "sample_size": 8}
    return louder(UNet2DConditionModel(**(BLOCKS | ups | changes)))


@functools.cache
def controlnet(**changes: Any) -> Any:
    torch.manual_seed(4)
    made = ControlNetModel(conditioning_embedding_out_channels=(4, 8), **(BLOCKS | changes))
    with torch.no_grad():  # its outputs begin as zeros
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return made.eval()


@functools.cache
def transformer() -> Any:
    torch.manual_seed(5)
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 16}
    return louder(PixArtTransformer2DModel(sample_size=8, num_layers=3, in_channels=4, out_channels=8, **heads))


@functools.cache
def vae() -> Any:
    torch.manual_seed(2)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, sample_size=16, **blocks
    ).eval()


def text_parts(folder: Path) -> dict[str, Any]:
    """A tokenizer of letters, and a CLIP."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(code) for code in range(97, 123)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=16)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    torch.manual_seed(6)
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(words), max_position_embeddings=16, **sizes, **ends))
    return {"tokenizer": tokenizer, "text_encoder": encoder.eval()}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


IMAGE = drawn(11, 1, 4, 8, 8)
"""Latents of an image."""
PICTURE = drawn(14, 1, 3, 16, 16).sigmoid()
"""An image, for pipelines that take no latents of one."""
MASK = (drawn(12, 1, 1, 16, 16) > 0).float().repeat_interleave(2, -1)[..., :16]
"""Where the image is to be repainted."""
HINT = drawn(13, 1, 3, 16, 16).sigmoid()
"""What a ControlNet goes by."""


class Replayed(Model):
    """A model whose noise is what a pipeline draws from its generator, or else from torch's own."""

    generator: torch.Generator | None = None
    copies = 1

    def noise(self, indices: Sequence[int], seed: int, stream: int = 0) -> Tensor:
        shape = (self.copies * len(indices), *self.shape)
        return torch.randn(shape, generator=self.generator, dtype=self.dtype)[: len(indices)]


@dataclass
class Tiny:
    """A pipeline, and how to ask its network ourselves.

    Attributes:
        options: of its call.
        answer: ``(x, t, texts)``, texts being of each sample what ``texts`` holds.
        texts: what the pipeline is asked to show, each for both prompts: what to stay away from, and what to go to.
        begins: it begins with an image.
        blends: it puts the known part of the image into the sample.
        encodes: it takes the image itself, and no latents.
    """

    pipe: Any
    options: dict[str, Any]
    answer: Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]
    texts: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    begins: bool = False
    blends: bool = False
    encodes: bool = False

    @property
    def network(self) -> Any:
        return self.pipe.transformer if hasattr(self.pipe, "transformer") else self.pipe.unet

    def call(self, seed: int = 0, **options: Any) -> Tensor:
        """The pipeline's latents at the end."""
        options = self.options | options
        generator = torch.Generator().manual_seed(seed)
        made: Tensor = self.pipe(generator=generator, output_type="latent", **options).images
        return made

    def model(self, scale: float, images: int = 1, rescale: float = 0.0) -> Replayed:
        """Its network with this guidance, as a model whose samples are for ``images`` of each prompt."""

        def predict(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
            texts = {
                key: [half.repeat_interleave(images, 0)[: len(x)] for half in both] for key, both in self.texts.items()
            }
            if scale <= 1:
                return self.answer(x, t, {key: both[1] for key, both in texts.items()})
            halves = {key: torch.cat(both) for key, both in texts.items()}
            without, given = self.answer(torch.cat([x, x]), torch.cat([t, t]), halves).chunk(2)
            guided = without + scale * (given - without)
            if rescale:  # Lin et al. 2024, section 3.4
                wide, narrow = (side.std((1, 2, 3), keepdim=True) for side in (guided, given))
                guided = rescale * guided * narrow / wide + (1 - rescale) * guided
            return guided

        config = self.pipe.scheduler.config
        return Replayed(
            predict,
            NoiseSchedule.from_config(config),
            (4, 8, 8),
            prediction=config.get("prediction_type", "epsilon"),
            module=self.network,
            dtype=self.network.dtype,
        )

    def drawn(self, generator: torch.Generator, batch: int) -> tuple[Tensor, Tensor]:
        """The image's latents and the noise, as the pipeline draws them."""
        image = IMAGE
        if self.encodes:
            seen = self.pipe.vae.encode(2 * PICTURE - 1).latent_dist
            image = self.pipe.vae.config.scaling_factor * seen.sample(generator)
        return image, torch.randn(batch, 4, 8, 8, generator=generator)

    @torch.no_grad()
    def ours(self, plan: Plan, seed: int = 0, images: int = 1, whole: bool = False, **guidance: float) -> Tensor:
        """The same latents from our own loop.

        Args:
            plan: what is left of it where the pipeline begins.
            whole: it begins in pure noise although it could begin with the image.
        """
        batch = images * len(next(iter(self.texts.values()))[0])
        scale = guidance.get("scale", self.options.get("guidance_scale", 1.0))
        model = self.model(scale, images, guidance.get("rescale", 0.0))
        if any(step.skip for step in plan.steps):
            _ = model.parts  # which are found with noise as well
        model.generator = torch.Generator().manual_seed(seed)
        image, noise = self.drawn(model.generator, batch)
        x = noise
        if self.begins and not whole:  # by diffusers' own arithmetic
            x = DDIMScheduler(**STOCK).add_noise(image, noise, torch.tensor([int(plan.times[0])]))
        if not self.blends:
            return run(model, plan, x)
        model.network = repainting(model, image, noise)
        return repainted(image, run(model, plan, x))


def repainted(image: Tensor, x: Tensor) -> Tensor:
    """The image where the mask keeps it, ``x`` elsewhere."""
    mask = MASK[..., ::2, ::2]
    return (1 - mask) * image + mask * x


def repainting(model: Model, image: Tensor, noise: Tensor) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The model's network, which after its first call sees the known part of the image as it is at ``t``."""
    network, asked = model.network, []

    def predict(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        if asked:
            at = float(t[0])
            x = repainted(model.schedule.alpha(at) * image + model.schedule.sigma(at) * noise, x)
        asked.append(t)
        return network(x, t, label)

    return predict


def run(model: Model, plan: Plan, x: Tensor) -> Tensor:
    """Our own loop from these latents."""
    [(_, done)] = walk(model, [plan], range(len(x)), 0, Cost(), begun=Beginnings(x, None))
    return done


def after(plan: Plan, first: int) -> Plan:
    """The plan from this step on; the first of them has no number that speaks of an earlier one."""
    steps = [step.model_dump() for step in plan.steps[first:]]
    for age, step in enumerate(steps):
        numbers = step.get("params", {})
        step["params"] = {k: v for k, v in numbers.items() if not (k.startswith("data") and int(k[4:]) > age)}
    return Plan.model_validate(plan.model_dump() | {"steps": steps})


def stable(kind: str = "StableDiffusionPipeline", batch: int = 1, scheduler: Any = None, **changes: Any) -> Tiny:
    """A pipeline of the Stable Diffusions, by the name of its class; ``changes`` are those of the UNet's config."""
    xl, control, paints = "XL" in kind, "ControlNet" in kind, "Inpaint" in kind
    network = unet(**((XL if xl else {}) | changes))
    parts: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer"))
    parts |= (
        dict.fromkeys(("text_encoder_2", "tokenizer_2"))
        if xl
        else dict.fromkeys(("safety_checker", "feature_extractor"))
    )
    if not xl:
        parts["requires_safety_checker"] = False
    if control:
        parts["controlnet"] = copied(controlnet(**(XL if xl else {})))
    made = getattr(diffusers, kind)(
        vae=copied(vae()),
        unet=copied(network),
        scheduler=scheduler or DDIMScheduler(clip_sample=False, **STOCK),
        **parts,
    )
    made.set_progress_bar_config(disable=True)
    negative, positive = drawn(21, batch, 5, 16), drawn(22, batch, 5, 16)
    texts = {"encoder_hidden_states": (negative, positive)}
    options: dict[str, Any] = {
        "prompt_embeds": positive,
        "negative_prompt_embeds": negative,
        "guidance_scale": 3.0,
    }
    if xl:
        texts["text_embeds"] = (drawn(23, batch, 16), drawn(24, batch, 16))
        options |= {"negative_pooled_prompt_embeds": texts["text_embeds"][0]}
        options |= {"pooled_prompt_embeds": texts["text_embeds"][1]}
    begins = paints or "Img2Img" in kind
    if begins:
        options["image"] = PICTURE if control and paints else IMAGE
    if paints:
        options["mask_image"] = MASK
    if paints and not control:
        options["masked_image_latents"] = 0.5 * IMAGE
    if control:
        options |= {"control_image" if begins else "image": HINT, "controlnet_conditioning_scale": 1.0}

    def answer(x: Tensor, t: Tensor, texts: dict[str, Tensor]) -> Tensor:
        shown: dict[str, Any] = {"encoder_hidden_states": texts["encoder_hidden_states"]}
        if xl:
            sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]]).expand(len(x), -1)
            shown["added_cond_kwargs"] = {"text_embeds": texts["text_embeds"], "time_ids": sizes}
        residuals: dict[str, Any] = {}
        if control:
            hint = HINT.expand(len(x), -1, -1, -1)
            down, middle = made.controlnet(x, t, controlnet_cond=hint, return_dict=False, **shown)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        if made.unet.config.in_channels == 9:
            mask, known = MASK[..., ::2, ::2].expand(len(x), -1, -1, -1), 0.5 * IMAGE.expand(len(x), -1, -1, -1)
            x = torch.cat([x, mask, known], 1)
        out: Tensor = made.unet(x, t, **shown, **residuals).sample
        return out

    return Tiny(made, options, answer, texts, begins, paints and network.config.in_channels == 4, paints and control)


def pixart(kind: str = "PixArtAlphaPipeline", batch: int = 1, scheduler: Any = None) -> Tiny:
    made = getattr(diffusers, kind)(
        tokenizer=None,
        text_encoder=None,
        vae=copied(vae()),
        transformer=copied(transformer()),
        scheduler=scheduler or DDIMScheduler(clip_sample=False),
    )
    made.set_progress_bar_config(disable=True)
    texts = {
        "encoder_hidden_states": (drawn(21, batch, 5, 16), drawn(22, batch, 5, 16)),
        "encoder_attention_mask": (torch.ones(batch, 5), torch.tensor([[1.0, 1, 1, 0, 0]]).expand(batch, -1)),
    }
    options = {
        "prompt": None,
        "negative_prompt": None,
        "prompt_embeds": texts["encoder_hidden_states"][1],
        "negative_prompt_embeds": texts["encoder_hidden_states"][0],
        "prompt_attention_mask": texts["encoder_attention_mask"][1],
        "negative_prompt_attention_mask": texts["encoder_attention_mask"][0],
        "guidance_scale": 3.0,
        "use_resolution_binning": False,
    }

    def answer(x: Tensor, t: Tensor, texts: dict[str, Tensor]) -> Tensor:
        none = {"resolution": None, "aspect_ratio": None}
        out: Tensor = made.transformer(x, timestep=t, added_cond_kwargs=none, **texts).sample
        return out

    return Tiny(made, options, answer, texts)


def state_of(pipe: Any, network: Any) -> tuple[Any, ...]:
    """What applying a plan could leave behind."""
    modules = list(network.modules())
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules]
    own = [sorted(vars(module)) for module in modules]
    return id(pipe.scheduler), [type(module) for module in modules], hooks, own, dict(pipe.config)


def copied(network: Any) -> Any:
    """One of its own, with the same weights."""
    again = type(network).from_config(network.config)
    again.load_state_dict(network.state_dict())
    return again.eval()


def apart(x: Tensor, reference: Tensor) -> float:
    """The largest difference, of the largest value."""
    return float((x - reference).abs().max() / reference.abs().max())


def free_plan(solver: str, times: Sequence[float], end: float | None = None, **options: Any) -> Plan:
    """A plan with layers left out, and 0.21 for each number that the solver leaves open."""
    from autodiffusion.solvers._base import build

    free = build(solver, NoiseSchedule.linear(), options).free(len(times), end is None)
    skips = [[1], [0, 2], [], [2]]
    steps = [
        {"t": t, "skip": skips[i % 4], "params": {number.name: 0.21 for number in numbers}}
        for i, (t, numbers) in enumerate(zip(times, free, strict=True))
    ]
    return Plan.model_validate({"solver": solver, "solver_options": options, "steps": steps, "end": end})
