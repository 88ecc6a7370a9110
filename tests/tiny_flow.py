"""Small random pipelines of Stable Diffusion 3 and Flux, and what their networks are asked, written down once more."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
)
from tiny_pipelines import PICTURE, Replayed, drawn, run
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from autodiffusion import NoiseSchedule, Plan

HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "joint_attention_dim": 16}
IMAGE, HINT = drawn(11, 1, 16, 8, 8), drawn(13, 1, 3, 16, 16).sigmoid()
"""Latents of an image, and what a ControlNet goes by."""
MASK = (drawn(12, 1, 1, 16, 16) > 0).float().repeat_interleave(2, -1)[..., :16]
"""Where the image is to be repainted."""
FLUX = {"use_dynamic_shifting": True, "shift": 3.0}


def wild(network: Any) -> Any:
    """With no weights at zero, and text that matters."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.add_(0.05 * drawn(len(name), *parameter.shape))
            if "context_embedder" in name or name.startswith("proj_out"):
                parameter.mul_(3)
    return network.eval().requires_grad_(False)


@functools.cache
def sd3(channels: int = 16, **changes: Any) -> Any:
    torch.manual_seed(3)
    sizes = {"caption_projection_dim": 16, "pooled_projection_dim": 12, "pos_embed_max_size": 8}
    config = {"sample_size": 8, "num_layers": 3, "in_channels": channels, "out_channels": 16, **HEADS, **sizes}
    return wild(SD3Transformer2DModel(**config | changes))


@functools.cache
def flux(channels: int = 64, guidance: bool = True) -> Any:
    torch.manual_seed(4)
    sizes = {"num_layers": 2, "num_single_layers": 2, "pooled_projection_dim": 12, "axes_dims_rope": (2, 2, 4)}
    return wild(
        FluxTransformer2DModel(
            in_channels=channels, out_channels=64, guidance_embeds=guidance, patch_size=1, **HEADS, **sizes
        )
    )


@functools.cache
def controlnet(kind: str) -> Any:
    torch.manual_seed(5)
    if kind == "sd3":
        sizes = {"caption_projection_dim": 16, "pooled_projection_dim": 12, "pos_embed_max_size": 8}
        return wild(SD3ControlNetModel(sample_size=8, num_layers=2, in_channels=16, out_channels=16, **HEADS, **sizes))
    sizes = {"num_layers": 1, "num_single_layers": 1, "pooled_projection_dim": 12, "axes_dims_rope": (2, 2, 4)}
    return wild(FluxControlNetModel(in_channels=64, guidance_embeds=True, patch_size=1, **HEADS, **sizes))


@functools.cache
def vae() -> Any:
    """Whose latents of an image are sure, as the pipelines draw them from generators of their own choice."""
    torch.manual_seed(2)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    made = AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=16, sample_size=16, shift_factor=0.06, **blocks
    )
    with torch.no_grad():  # the latter half of its channels is the logarithm of the variance
        made.quant_conv.weight[16:] = 0
        made.quant_conv.bias[16:] = -100
    return made.eval()


def packed(x: Tensor) -> Tensor:
    """Latents as Flux's tokens: 2x2 places each, ``[B, 16, 64]``."""
    places = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # B C h 2 w 2
    return places.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


@dataclass
class Flowing:
    """A pipeline, and how to ask its network ourselves.

    Attributes:
        options: of its call.
        answer: ``(x, t, texts)``, texts being ``[B, ...]`` each; x is laid out as the pipeline has it.
        texts: of each prompt, what to stay away from and what to go to.
        scale: classifier-free guidance; 1 is none.
        begins, blends: it begins with an image, it puts the known part of one into the sample.
    """

    pipe: Any
    options: dict[str, Any]
    answer: Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]
    texts: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    scale: float = 1.0
    begins: bool = False
    blends: bool = False

    @property
    def flux(self) -> bool:
        return "Flux" in type(self.pipe).__name__

    @property
    def control(self) -> bool:
        return "ControlNet" in type(self.pipe).__name__

    def call(self, seed: int = 0, images: int = 1, **options: Any) -> Tensor:
        """The pipeline's latents at the end, ``images`` for each prompt."""
        options = self.options | {"generator": torch.Generator().manual_seed(seed)} | options
        # texts that are encoded already the pipelines take as they are
        texts = {k: v.repeat_interleave(images, 0) for k, v in options.items() if k.endswith("prompt_embeds")}
        torch.manual_seed(seed)  # these pipelines hand no generator to a scheduler
        made: Tensor = self.pipe(output_type="latent", **options | texts).images
        return made

    def model(self, images: int = 1) -> Replayed:
        """Its network as a model whose samples are for ``images`` of each prompt."""

        def predict(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
            halves = {key: [half.repeat_interleave(images, 0) for half in both] for key, both in self.texts.items()}
            given = self.answer(x, t, {key: half[1] for key, half in halves.items()})
            if self.scale == 1:
                return given
            without = self.answer(x, t, {key: half[0] for key, half in halves.items()})
            return without + self.scale * (given - without)

        shape = (16, 64) if self.flux else (16, 8, 8)
        network = self.pipe.transformer
        return Replayed(
            predict,
            NoiseSchedule.flow(),
            shape,
            prediction="flow_prediction",
            module=network,
            dtype=network.dtype,
        )

    def image(self) -> Tensor:
        """The latents of the image that it begins with."""
        given: Tensor = self.options.get("image", IMAGE)
        if given.shape[1] == 16:
            return given
        seen: Tensor = self.pipe.vae.encode(2 * given - 1).latent_dist.mode()
        return self.pipe.vae.config.scaling_factor * (seen - self.pipe.vae.config.shift_factor)

    @torch.no_grad()
    def ours(self, plan: Plan, seed: int = 0, images: int = 1, whole: bool = False) -> Tensor:
        """The same latents from our own loop.

        Args:
            plan: what is left of it where the pipeline begins.
            whole: it begins in pure noise although it could begin with the image.
        """
        batch, model = images * len(self.options["prompt_embeds"]), self.model(images)
        if any(step.skip for step in plan.steps):
            _ = parts(self, model)
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        if "Fill" in type(self.pipe).__name__:  # the image's own latents are drawn first
            torch.randn(1, 16, 8, 8, generator=generator)
        if self.control:  # the latents of what the ControlNet goes by are drawn first, twice with guidance
            torch.randn(batch * (1 if self.flux else 2), 16, 8, 8, generator=generator if self.flux else None)
        noise, s = torch.randn(batch, 16, 8, 8, generator=generator), plan.times[0] / 1000
        image = self.image().expand(batch, -1, -1, -1)
        x = (1 - s) * image + s * noise if self.begins and not whole else noise
        mask = MASK[..., ::2, ::2].expand(batch, 16, -1, -1)
        image, noise, x, mask = (packed(part) if self.flux else part for part in (image, noise, x, mask))
        if not self.blends:
            return run(model, plan, x)
        network, asked = model.network, []

        def repainting(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
            if asked:  # after its first call it sees the known part of the image as it is at t
                s = float(t[0]) / 1000
                x = (1 - mask) * ((1 - s) * image + s * noise) + mask * x
            asked.append(t)
            return network(x, t, label)

        model.network = repainting
        return (1 - mask) * image + mask * run(model, plan, x)


def parts(tiny: Flowing, model: Replayed) -> Any:
    """The layers, found on what the network really takes."""
    network = model.network
    first = {key: both[1][:1] for key, both in tiny.texts.items()}
    model.network = lambda x, t, label: tiny.answer(x, t, first)
    found = model.parts
    model.network = network
    return found


def stable3(
    kind: str = "StableDiffusion3Pipeline", batch: int = 1, scheduler: Any = None, scale: float = 3.0
) -> Flowing:
    control, paints = "ControlNet" in kind, "Inpaint" in kind
    made: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    made |= dict.fromkeys(("text_encoder_3", "tokenizer_3"))
    if control:
        made["controlnet"] = copied(controlnet("sd3"))
    pipe = getattr(diffusers, kind)(
        transformer=copied(sd3()),
        vae=copied(vae()),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
        **made,
    )
    pipe.set_progress_bar_config(disable=True)
    texts = {
        "encoder_hidden_states": (drawn(21, batch, 5, 16), drawn(22, batch, 5, 16)),
        "pooled_projections": (drawn(23, batch, 12), drawn(24, batch, 12)),
    }
    options = {
        "prompt_embeds": texts["encoder_hidden_states"][1],
        "negative_prompt_embeds": texts["encoder_hidden_states"][0],
        "pooled_prompt_embeds": texts["pooled_projections"][1],
        "negative_pooled_prompt_embeds": texts["pooled_projections"][0],
        "guidance_scale": scale,
        "height": 16,
        "width": 16,
    }
    begins = paints or "Img2Img" in kind
    if begins:
        options["image"] = IMAGE
    if "Img2Img" in kind:
        del options["height"], options["width"]
    if paints:
        options |= {"mask_image": MASK, "masked_image_latents": 0.5 * IMAGE}
    if control:
        options["control_image"] = HINT

    def answer(x: Tensor, t: Tensor, texts: dict[str, Tensor]) -> Tensor:
        residuals = None
        if control:
            # a hint that is a tensor is taken as it is; of the pooled text these ControlNets see zeros
            hint = pipe.vae.config.scaling_factor * pipe.vae.encode(HINT).latent_dist.mode().expand(len(x), -1, -1, -1)
            shown = texts | {"pooled_projections": torch.zeros_like(texts["pooled_projections"])}
            residuals = pipe.controlnet(x, hint, timestep=t, return_dict=False, **shown)[0]
        out: Tensor = pipe.transformer(x, timestep=t, block_controlnet_hidden_states=residuals, **texts).sample
        return out

    return Flowing(pipe, options, answer, texts, scale, begins, paints)


def fluxes(kind: str = "FluxPipeline", batch: int = 1, scheduler: Any = None, **changes: Any) -> Flowing:
    """A pipeline of Flux; ``changes`` are ``guidance`` of its network and ``scale`` of true guidance."""
    control, paints, scale = "ControlNet" in kind, "Inpaint" in kind, changes.pop("scale", 1.0)
    fills, beside = "Fill" in kind, "Kontext" in kind
    made: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    if control:
        made["controlnet"] = copied(controlnet("flux"))
    pipe = getattr(diffusers, kind)(
        transformer=copied(flux(144 if fills else 64, **changes)),
        vae=copied(vae()),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(**FLUX),
        **made,
    )
    pipe.set_progress_bar_config(disable=True)
    texts = {
        "encoder_hidden_states": (drawn(21, batch, 5, 16), drawn(22, batch, 5, 16)),
        "pooled_projections": (drawn(23, batch, 12), drawn(24, batch, 12)),
    }
    options: dict[str, Any] = {
        "prompt_embeds": texts["encoder_hidden_states"][1],
        "pooled_prompt_embeds": texts["pooled_projections"][1],
        "guidance_scale": 3.5,
        "height": 16,
        "width": 16,
    }
    if scale > 1:
        options |= {"negative_prompt_embeds": texts["encoder_hidden_states"][0], "true_cfg_scale": scale}
        options |= {"negative_pooled_prompt_embeds": texts["pooled_projections"][0]}
    begins = paints or fills or "Img2Img" in kind
    if begins or beside:
        options["image"] = PICTURE if fills else IMAGE
    known = None
    if fills:  # the network sees the known part of the picture, and where it is, beside the sample
        options["mask_image"] = MASK
        parts = pipe.prepare_mask_latents(MASK, (2 * PICTURE - 1) * (1 - MASK), 1, 16, 1, 16, 16, None, "cpu", None)
        known = torch.cat(parts[::-1], -1)
    if beside:
        options["max_area"] = 16 * 16
    if paints:
        options |= {"mask_image": MASK, "masked_image_latents": 0.5 * IMAGE}
    if control:
        options["control_image"] = HINT

    def answer(x: Tensor, t: Tensor, texts: dict[str, Tensor]) -> Tensor:
        places = torch.zeros(16, 3)
        places[:, 1], places[:, 2] = torch.arange(4).repeat_interleave(4), torch.arange(4).repeat(4)
        count = x.shape[1]
        if known is not None:
            x = torch.cat([x, known.expand(len(x), -1, -1)], 2)
        if beside:  # tokens of the image, at places of another kind
            x = torch.cat([x, packed(IMAGE).expand(len(x), -1, -1)], 1)
            places = torch.cat([places, places + torch.tensor([1.0, 0, 0])])
        guidance = torch.full((len(x),), 3.5) if pipe.transformer.config.guidance_embeds else None
        shown = texts | {"timestep": t / 1000, "guidance": guidance}
        shown |= {"img_ids": places, "txt_ids": torch.zeros(5, 3)}
        residuals: dict[str, Any] = {}
        if control:
            seen = pipe.vae.encode(HINT).latent_dist.mode()
            seen = packed((seen - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor).expand(len(x), -1, -1)
            blocks, single = pipe.controlnet(x, seen, return_dict=False, **shown)
            residuals = {"controlnet_block_samples": blocks, "controlnet_single_block_samples": single}
        out: Tensor = pipe.transformer(x, **shown, **residuals).sample
        return out[:, :count]

    return Flowing(pipe, options, answer, texts, scale, begins, paints)


def copied(network: Any) -> Any:
    """One of its own, with the same weights."""
    again = type(network).from_config(network.config)
    again.load_state_dict(network.state_dict())
    return again.eval().requires_grad_(False)


# with text encoders


def clip(folder: Path, kind: Any = CLIPTextModelWithProjection, width: int = 16) -> tuple[Any, Any]:
    """A text encoder, and a tokenizer of letters."""
    letters = [chr(code) for code in range(97, 123)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    sizes = {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = CLIPTextConfig(vocab_size=len(words), max_position_embeddings=16, projection_dim=6, **sizes, **ends)
    return kind(config).eval(), CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def t5(width: int) -> tuple[Any, Any]:
    """Likewise."""
    letters = [(chr(code), -3.0) for code in range(97, 123)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *letters]
    config = T5Config(vocab_size=len(vocabulary), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval(), T5TokenizerFast(vocab=vocabulary, extra_ids=0)


def whole(kind: str, folder: Path, scheduler: Any = None, *, t5s: bool = True, guidance: bool = True) -> Any:
    """A pipeline from text, with all its parts.

    Args:
        folder: for the tokenizers.
        t5s: whether Stable Diffusion 3 has its third text encoder.
        guidance: whether Flux is given its guidance scale.
    """
    torch.manual_seed(6)
    made: dict[str, Any] = {"vae": copied(vae())}
    if kind == "StableDiffusion3Pipeline":
        made["text_encoder"], made["tokenizer"] = clip(folder)
        made["text_encoder_2"], made["tokenizer_2"] = clip(folder)
        made["text_encoder_3"], made["tokenizer_3"] = t5(32) if t5s else (None, None)
        made["transformer"] = copied(sd3(joint_attention_dim=32))
        made["scheduler"] = scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0)
    else:
        made["text_encoder"], made["tokenizer"] = clip(folder, CLIPTextModel, width=12)
        made["text_encoder_2"], made["tokenizer_2"] = t5(16)
        made["transformer"] = copied(flux(64, guidance))
        made["scheduler"] = scheduler or FlowMatchEulerDiscreteScheduler(**FLUX)
    pipe = getattr(diffusers, kind)(**made)
    pipe.set_progress_bar_config(disable=True)
    return pipe
