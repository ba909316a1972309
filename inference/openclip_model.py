"""CLIP towers by open_clip: the small one trained here and the published ViT-B/32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ClipSize:
    """Size of a CLIP.

    Parameters
    ----------
    embed_dim
        Width of the joint embedding.
    image_size
        Side of the image, pixels.
    vision_layers
        Blocks of the image tower: four numbers make CLIP's ResNet, one number a vision transformer.
    vision_width, patch_size
        Of the image tower; the patch counts for the transformer only.
    text_width, text_heads, text_layers, context_length
        Of the text tower.
    quick_gelu
        As in OpenAI's weights.
    """

    embed_dim: int
    image_size: int
    vision_layers: tuple[int, int, int, int] | int
    vision_width: int
    patch_size: int
    text_width: int
    text_heads: int
    text_layers: int
    context_length: int
    quick_gelu: bool


REFERENCE = ClipSize(256, 64, (1, 2, 2, 1), 32, 0, 128, 4, 4, 32, quick_gelu=False)
VIT_B_32 = ClipSize(512, 224, 12, 768, 32, 512, 8, 12, 77, quick_gelu=True)


def build_clip(size: ClipSize) -> CLIP:
    """Both towers with untrained weights; `inference.weights.load_into` fills them.

    Returns
    -------
    open_clip.model.CLIP
        Images float (n, 3, side, side); tokens int64 (n, context).
    """
    vision = CLIPVisionCfg(
        layers=size.vision_layers,
        width=size.vision_width,
        image_size=size.image_size,
        patch_size=size.patch_size,
    )
    text = CLIPTextCfg(
        context_length=size.context_length,
        width=size.text_width,
        heads=size.text_heads,
        layers=size.text_layers,
    )
    return CLIP(size.embed_dim, vision, text, quick_gelu=size.quick_gelu)


@lru_cache(maxsize=4)
def _tokenizer(context_length: int) -> SimpleTokenizer:
    return SimpleTokenizer(context_length=context_length)


def tokenize(sentences: Sequence[str], context_length: int) -> Tensor:
    """Byte-pair tokens, int64, shape (n, context_length), padded with 0; longer sentences are cut."""
    tokens: Tensor = _tokenizer(context_length)(list(sentences))
    return tokens


def token_embeddings(clip: CLIP, tokens: Tensor) -> Tensor:
    """Last hidden state of the text tower, after the final norm and before pooling.

    Parameters
    ----------
    clip
        From `build_clip`.
    tokens
        int64, shape (n, context).

    Returns
    -------
    torch.Tensor
        Shape (n, context, text width). Positions behind the end of the text are 0.
    """
    hidden = clip.token_embedding(tokens) + clip.positional_embedding
    hidden = clip.ln_final(clip.transformer(hidden, attn_mask=clip.attn_mask))
    return torch.where((tokens > 0).unsqueeze(-1), hidden, torch.zeros_like(hidden))


@torch.inference_mode()
def embed_sentences(clip: CLIP, sentences: Sequence[str]) -> Tensor:
    """Pooled embeddings of length 1, float32, shape (n, embed_dim), on the CPU."""
    tokens = tokenize(sentences, clip.context_length).to(clip.logit_scale.device)
    embedding: Tensor = clip.encode_text(tokens, normalize=True)
    return embedding.float().cpu()
