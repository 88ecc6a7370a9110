"""Stable Diffusion 3 and Flux: text-to-image models of flow matching, from the folders of diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autodiffusion._errors import InputError, nearest
from autodiffusion._plans.flow import FlowSchedule, is_flow
from autodiffusion.models._captions import Captions
from autodiffusion.models._model import Model
from autodiffusion.models.diffusers._autoencoder import decoder, enlargement
from autodiffusion.models.diffusers._folder import quiet, scheduler_of, settings_of, weights_of
from autodiffusion.models.diffusers._pipeline import index_of, needs_upcast, no_bars, tokenizer_of
from autodiffusion.models.diffusers._prompts import NULL, Encode, Prompts

SD3, FLUX = "StableDiffusion3Pipeline", "FluxPipeline"
PROJECTED = "CLIPTextModelWithProjection"
KINDS: dict[str, dict[str, str]] = {
    SD3: {
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": PROJECTED,
        "tokenizer": "CLIPTokenizer",
        "text_encoder_2": PROJECTED,
        "tokenizer_2": "CLIPTokenizer",
        "text_encoder_3": "T5EncoderModel",
        "tokenizer_3": "T5Tokenizer",
    },
    FLUX: {
        "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "text_encoder_2": "T5EncoderModel",
        "tokenizer_2": "T5Tokenizer",
    },
}
"""The pipelines, and of which class each of their parts is."""
OPTIONAL = ("text_encoder_3", "tokenizer_3")
"""Large parts that people leave out (``None`` in ``model_index.json``); zeros stand for what they would say."""
GUIDANCE = {SD3: 7.0, FLUX: 3.5}
"""Where nothing is said, as in their calls."""
SIDE, PATCH = 128, 2
"""Of Flux: the default height and width in latents, and those of a token."""

Answer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x ``[B, C, H, W]``, t ``[B]``, texts ``[B, L, D]``, pooled texts ``[B, P]``) -> velocity ``[B, C, H, W]``."""


@torch.inference_mode(False)  # weights of inference mode could not be used outside it
def load_flow(
    name: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    guidance_scale: float | None = None,
    captions: str | None = None,
    model_options: Mapping[str, Any] | None = None,
) -> Model:
    """A Model of the latents of a Stable Diffusion 3 or Flux, whose samples show captions.

    Everything is in ``dtype``; but the autoencoder stays float32 where the rest is float16 and its configuration has
    ``force_upcast``. The noise schedule comes from the scheduler's configuration, a shift by resolution from that and
    the size of the images. Texts are encoded by the pipeline's own ``encode_prompt``, at its default lengths.

    Args:
        name: folder or hub name of a pipeline.
        guidance_scale: of Stable Diffusion 3 classifier-free, 1 is none; of Flux the number that its network is given.
        captions: file of captions, see :meth:`Captions.read`; without them the model can be looked at, not sampled.
        model_options: ``height`` and ``width`` of the images in pixels; the pipeline's own where nothing is said.

    Raises:
        InputError: transformers is not installed, one of the files cannot be used, or an option does not fit.
    """
    try:
        import diffusers
        import transformers  # noqa: F401
    except ImportError:
        raise InputError(f"model '{name}': needs transformers; pip install \"autodiffusion[text]\"") from None
    index = index_of(name, KINDS, OPTIONAL)
    kind, asked = index["_class_name"], Captions.read(captions) if captions is not None else Captions()
    config = _scheduler(name)
    network, images = (
        settings_of(getattr(diffusers, KINDS[kind][part]), name, part) for part in ("transformer", "vae")
    )
    shape, tokens = _latents(name, network, images, model_options or {})
    schedule = FlowSchedule.from_scheduler(config, tokens)
    scale = _scale(name, kind, network, guidance_scale)
    pipe = _pipeline(name, kind, index, device, dtype)  # the weights, after all that can be known without them
    prompts = Prompts(asked.texts, _encoder(pipe), device)
    embedded = scale if network.get("guidance_embeds") else None
    answer = _flux(pipe.transformer, embedded) if kind == FLUX else _sd3(pipe.transformer)

    def denoise(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        assert label is not None
        return answer(x, t, *prompts(label.tolist()))

    return Model(
        denoise,
        schedule,
        shape,
        prediction=config.get("prediction_type", "flow_prediction"),
        clip=False,  # latents have no range to be clipped to
        null_class=NULL,
        guidance_scale=1.0 if kind == FLUX else scale,
        name=name,
        device=device,
        dtype=dtype,
        module=pipe.transformer,
        captions=asked,
        decoder=decoder(pipe.vae, mean=pipe.vae.config.get("shift_factor") or 0.0),
    )


def _scheduler(name: str) -> dict[str, Any]:
    """The configuration of its scheduler, which is for flow matching."""
    config = scheduler_of(name) or {}
    if not is_flow(config):
        raise InputError(
            f"model '{name}': its scheduler is {config.get('_class_name')}, which is not for flow matching; take the "
            "FlowMatchEulerDiscreteScheduler that it came with"
        )
    return config


def _scale(name: str, kind: str, network: Mapping[str, Any], asked: float | None) -> float:
    """The guidance scale, the pipeline's own where none is asked for."""
    if asked is not None and kind == FLUX and not network["guidance_embeds"]:
        raise InputError(f"model '{name}': its network is given no guidance scale; leave --guidance-scale out")
    return GUIDANCE[kind] if asked is None else asked


def _latents(
    name: str, network: Mapping[str, Any], vae: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[tuple[int, int, int], int]:
    """The shape of a sample, and as how many tokens the network sees it; by the configurations.

    Raises:
        InputError: unknown options, a size that does not fit, or a network that takes more than noisy latents.
    """
    most = network.get("pos_embed_max_size")  # which Flux does not have
    patch, side = (PATCH, SIDE) if most is None else (network["patch_size"], network["sample_size"])
    channels, pixels = vae["latent_channels"], enlargement(vae)
    given, wanted = network["in_channels"], channels * (PATCH**2 if most is None else 1)
    made = network["out_channels"] or given
    if (given, made) != (wanted, wanted):
        raise InputError(
            f"model '{name}': its network makes {made} channels of {given}; this version samples those that make "
            f"{wanted} of {wanted}, noisy latents alone"
        )
    sizes = {"height": side, "width": side}
    for key, value in options.items():
        if key not in sizes:
            raise InputError(f"model option '{key}' is unknown {nearest(key, sizes)}")
        if type(value) is not int or value < 1 or value % (patch * pixels):
            raise InputError(f"model option {key} = {value} is not a multiple of {patch * pixels} pixels above 0")
        if most is not None and value > most * patch * pixels:
            raise InputError(f"model option {key} = {value} is more than its network has, {most * patch * pixels}")
        sizes[key] = value // pixels
    return (channels, sizes["height"], sizes["width"]), (sizes["height"] // patch) * (sizes["width"] // patch)


def _pipeline(name: str, kind: str, index: Mapping[str, Any], device: str, dtype: torch.dtype) -> Any:
    """The pipeline with all its parts but a scheduler."""
    import diffusers
    import transformers

    parts: dict[str, Any] = {}
    for part, wanted in KINDS[kind].items():
        _, found = index[part]
        if found is None:
            parts[part] = None
        elif part.startswith("tokenizer"):
            parts[part] = tokenizer_of(getattr(transformers, found), name, part)
        else:
            library: Any = transformers if part.startswith("text_encoder") else diffusers
            exact = part == "vae" and dtype == torch.float16 and needs_upcast(name)
            wide = torch.float32 if exact else dtype
            with no_bars():  # in this dtype from the beginning, of which T5 keeps some weights in float32
                network = weights_of(getattr(library, wanted), name, wide, subfolder=part)
            with quiet():
                if library is diffusers:  # which without accelerate leaves some weights in float32
                    network.to(wide)
                parts[part] = network.to(device).eval().requires_grad_(False)
    # channels last is the layout that convolutions are fastest in, on CPU and GPU
    parts["vae"].to(memory_format=torch.channels_last)
    with quiet():
        return getattr(diffusers, kind)(scheduler=None, **parts)


def _encoder(pipe: Any) -> Encode:
    """What the pipeline makes of texts: of their tokens, and of each as a whole."""

    def encode(texts: Sequence[str]) -> tuple[Tensor, ...]:
        options: dict[str, Any] = {"prompt": list(texts), "prompt_2": None, "device": pipe.transformer.device}
        with quiet():  # texts that are too long are cut, as ever
            if hasattr(pipe, "tokenizer_3"):
                shown, _, pooled, _ = pipe.encode_prompt(prompt_3=None, do_classifier_free_guidance=False, **options)
            else:
                shown, pooled, _ = pipe.encode_prompt(**options)
        return shown, pooled

    return encode


def _sd3(transformer: Any) -> Answer:
    def answer(x: Tensor, t: Tensor, texts: Tensor, pooled: Tensor) -> Tensor:
        velocity: Tensor = transformer(x, texts, pooled, t, return_dict=False)[0]
        return velocity

    return answer


def _flux(transformer: Any, guidance: float | None) -> Answer:
    """Latents as tokens of 2x2 places, as its pipelines lay them out; times in their dtype, as theirs are."""

    def answer(x: Tensor, t: Tensor, texts: Tensor, pooled: Tensor) -> Tensor:
        rows, columns = (size // PATCH for size in x.shape[2:])
        places = x.new_zeros(rows, columns, 3)
        places[..., 1] = torch.arange(rows, device=x.device)[:, None]
        places[..., 2] = torch.arange(columns, device=x.device)
        grid = x.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # B C rows 2 columns 2
        velocity: Tensor = transformer(
            grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2),
            encoder_hidden_states=texts,
            pooled_projections=pooled,
            timestep=t.to(x.dtype) / 1000,
            img_ids=places.flatten(0, 1),
            txt_ids=x.new_zeros(texts.shape[1], 3),
            guidance=None if guidance is None else torch.full((len(x),), guidance, device=x.device),
            return_dict=False,
        )[0]
        tokens = velocity.unflatten(2, (-1, PATCH, PATCH)).unflatten(1, (rows, columns))
        latents: Tensor = tokens.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
        return latents

    return answer


networks = tuple(parts["transformer"] for parts in KINDS.values())
model = load_flow
