"""Text-to-image models of the Stable Diffusion family, from diffusers' pipelines and from single files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from autodiffusion._errors import InputError
from autodiffusion.models._captions import Captions
from autodiffusion.models._model import Model
from autodiffusion.models.diffusers._autoencoder import decoder, enlargement
from autodiffusion.models.diffusers._folder import quiet, schedule_of
from autodiffusion.models.diffusers._pipeline import parts_of
from autodiffusion.models.diffusers._prompts import NULL, Prompts, text_encoder

GUIDANCE = 7.5
"""Of Stable Diffusion, where nothing is said."""


@torch.inference_mode(False)  # weights of inference mode could not be used outside it
def load_text_to_image(
    name: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    guidance_scale: float = GUIDANCE,
    checkpoint: str | None = None,
    captions: str | None = None,
) -> Model:
    """A Model of the latents of a Stable Diffusion 1, 2 or XL, whose samples show captions.

    The network, the text encoder and the autoencoder are all in ``dtype``; but the autoencoder stays float32 where the
    rest is float16 and its configuration has ``force_upcast``. The prediction type and the noise schedule come from the
    scheduler's configuration. The safety checker is not loaded.

    Args:
        name: folder or hub name of a pipeline, or a ``.ckpt`` or ``.safetensors`` file of all weights.
        guidance_scale: classifier-free; 1 is none.
        checkpoint: such a file, where ``name`` has the configuration.
        captions: file of captions, see :meth:`Captions.read`; without them the model can be looked at, not sampled.

    Raises:
        InputError: transformers is not installed, or one of the files cannot be used.
    """
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise InputError(f"model '{name}': needs transformers; pip install \"autodiffusion[text]\"") from None
    asked = Captions.read(captions) if captions is not None else Captions()
    parts = parts_of(name, checkpoint)
    channels, size = _latents(name, parts.unet.config, parts.vae.config, parts.xl)
    # latents have no range to be clipped to
    schedule = schedule_of(name, parts.scheduler and parts.scheduler | {"clip_sample": False, "thresholding": False})
    unet, vae, exact = parts.unet, parts.vae, parts.upcast and dtype == torch.float16
    with quiet():
        # channels last is the layout that convolutions are fastest in, on CPU and GPU
        unet.to(device, dtype, memory_format=torch.channels_last)
        vae.to(device, torch.float32 if exact else dtype, memory_format=torch.channels_last)
        for network in (unet, vae, *(encoder.to(device, dtype) for _, encoder in parts.encoders)):
            network.eval().requires_grad_(False)
    prompts = Prompts(asked.texts, text_encoder(parts.encoders, pooled=parts.xl, zeros=parts.zeros), device)
    image = [enlargement(vae.config) * pixels for pixels in size]
    # the size of the picture, its crop and the size asked for, as the pipeline has them where nothing is said
    shown = torch.tensor([[*image, 0, 0, *image]], device=device, dtype=dtype)

    def denoise(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        assert label is not None
        embeddings, *pooled = prompts(label.tolist())
        added = {"text_embeds": pooled[0], "time_ids": shown.expand(len(x), -1)} if pooled else None
        output: Tensor = unet(x, t, encoder_hidden_states=embeddings, added_cond_kwargs=added, return_dict=False)[0]
        return output

    return Model(
        denoise,
        schedule,
        (channels, *size),
        prediction=(parts.scheduler or {}).get("prediction_type", "epsilon"),
        clip=False,
        null_class=NULL,
        guidance_scale=guidance_scale,
        name=name,
        device=device,
        dtype=dtype,
        module=unet,
        captions=asked,
        decoder=_decoder(vae, parts.xl),
    )


def _latents(name: str, unet: Any, vae: Any, xl: bool) -> tuple[int, tuple[int, int]]:
    """The channels and the size of its latents.

    Raises:
        InputError: the network takes more than noisy latents and a text, or does not say what size they have.
    """
    plain = {
        "class_embed_type": None,
        "num_class_embeds": None,
        "time_cond_proj_dim": None,
        "encoder_hid_dim_type": None,
        "addition_embed_type": "text_time" if xl else None,
        "in_channels": vae["latent_channels"],
        "out_channels": vae["latent_channels"],
    }
    for key, wanted in plain.items():
        if unet.get(key) != wanted:
            raise InputError(
                f"model '{name}': its network has {key} = {unet.get(key)}; this version samples those with {wanted}, "
                "that take noisy latents and a text"
            )
    size = unet.get("sample_size")
    if size is None:
        raise InputError(f"model '{name}': its unet/config.json does not say the sample_size; write it there")
    return vae["latent_channels"], (size, size) if isinstance(size, int) else tuple(size)


def _decoder(vae: Any, xl: bool) -> Callable[[Tensor], Tensor]:
    """Puts back the mean and the deviation of the latents, as XL's pipeline does where its autoencoder has both."""
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    return decoder(vae, mean=mean, std=std) if xl and mean is not None and std is not None else decoder(vae)


networks = ("UNet2DConditionModel",)
model = load_text_to_image
