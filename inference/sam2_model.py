"""SAM 2 prompted by a sentence: CLIP token embeddings become sparse prompt tokens; no click, no box needed.

The classes are those of the `sam2` package (Ravi et al., arXiv 2408.00714); what is added is a projection of
the text tower's tokens and their place beside the prompt encoder's sparse tokens, as in Lung-CADex and
EMeRALDS (arXiv 2509.11714, abstract). One `Sam2Size` describes the small network that is trained here and the
published ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.transformer import RoPEAttention
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
from torch import Tensor, nn
from torch.nn import functional

_MEAN: Final = (0.485, 0.456, 0.406)
_DEVIATION: Final = (0.229, 0.224, 0.225)
"""Of ImageNet, as the published weights expect them."""

_STRIDE: Final = 16
_MEMORY_WIDTH: Final = 64
_NO_POINT, _BOX_START, _BOX_END = -1, 2, 3
"""Labels of points that the prompt encoder knows."""


@dataclass(frozen=True, slots=True)
class Sam2Size:
    """Size of a text-prompted SAM 2.

    Parameters
    ----------
    image_size
        Side of the square image, pixels, a multiple of 16.
    width
        Channels of neck, memory attention and decoder.
    embed_dim, heads, stages, global_blocks, window_spec, window_background
        Of the Hiera trunk.
    top_down
        Levels of the neck (0 finest) that receive the level above.
    memory_layers, memory_feedforward
        Of the memory attention.
    text_width
        Channels of a token of the text tower.
    convolutional_stem
        Three small convolutions in place of one of 7 x 7 with stride 4 (Xiao et al., arXiv 2106.14881), which
        learn faster from little data; never with published weights.
    """

    image_size: int
    width: int
    embed_dim: int
    heads: int
    stages: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    window_spec: tuple[int, int, int, int]
    window_background: tuple[int, int]
    top_down: tuple[int, ...]
    memory_layers: int
    memory_feedforward: int
    text_width: int
    convolutional_stem: bool = False


REFERENCE: Final = Sam2Size(
    image_size=96,
    width=128,
    embed_dim=48,
    heads=1,
    stages=(1, 2, 4, 2),
    global_blocks=(4,),
    window_spec=(8, 4, 6, 3),
    window_background=(6, 6),
    top_down=(0, 1, 2, 3),
    memory_layers=2,
    memory_feedforward=512,
    text_width=128,
    convolutional_stem=True,
)

_TOP = (2, 3)
PUBLISHED: Final = {
    "sam2.1-hiera-tiny": Sam2Size(
        1024, 256, 96, 1, (1, 2, 7, 2), (5, 7, 9), (8, 4, 14, 7), (7, 7), _TOP, 4, 2048, 512
    ),
    "sam2.1-hiera-small": Sam2Size(
        1024, 256, 96, 1, (1, 2, 11, 2), (7, 10, 13), (8, 4, 14, 7), (7, 7), _TOP, 4, 2048, 512
    ),
    "sam2.1-hiera-base-plus": Sam2Size(
        1024, 256, 112, 2, (2, 3, 16, 3), (12, 16, 20), (8, 4, 14, 7), (14, 14), _TOP, 4, 2048, 512
    ),
    "sam2.1-hiera-large": Sam2Size(
        1024, 256, 144, 2, (2, 6, 36, 4), (23, 33, 43), (8, 4, 16, 8), (7, 7), _TOP, 4, 2048, 512
    ),
}
"""The published sizes: their keys and shapes but for ``text_projection``, which no published file has."""


class _Stem(nn.Module):
    """Stride 4 by three convolutions, (n, 3, h, w) to (n, h / 4, w / 4, channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, channels // 2, 3, stride=2, padding=1),
            nn.GroupNorm(4, channels // 2),
            nn.GELU(),
            nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1),
            nn.GroupNorm(4, channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features.permute(0, 2, 3, 1)


def _sine(channels: int) -> nn.Module:
    encoding: nn.Module = PositionEmbeddingSine(channels, normalize=True, scale=None, temperature=10000)
    return encoding


def _image_encoder(size: Sam2Size) -> nn.Module:
    trunk = Hiera(
        embed_dim=size.embed_dim,
        num_heads=size.heads,
        stages=size.stages,
        global_att_blocks=size.global_blocks,
        window_pos_embed_bkg_spatial_size=size.window_background,
        window_spec=size.window_spec,
    )
    if size.convolutional_stem:
        trunk.patch_embed = _Stem(size.embed_dim)
    neck = FpnNeck(
        _sine(size.width),
        d_model=size.width,
        backbone_channel_list=trunk.channel_list,
        fpn_top_down_levels=list(size.top_down),
        fpn_interp_model="nearest",
    )
    encoder: nn.Module = ImageEncoder(trunk=trunk, neck=neck, scalp=1)
    return encoder


def _memory_attention(size: Sam2Size) -> nn.Module:
    side = size.image_size // _STRIDE
    attention = {
        "rope_theta": 10000.0,
        "feat_sizes": (side, side),
        "embedding_dim": size.width,
        "num_heads": 1,
        "downsample_rate": 1,
        "dropout": 0.1,
    }
    layer = MemoryAttentionLayer(
        activation="relu",
        dim_feedforward=size.memory_feedforward,
        dropout=0.1,
        pos_enc_at_attn=False,
        self_attention=RoPEAttention(**attention),
        d_model=size.width,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        cross_attention=RoPEAttention(**attention, rope_k_repeat=True, kv_in_dim=_MEMORY_WIDTH),
    )
    stack: nn.Module = MemoryAttention(
        d_model=size.width, pos_enc_at_input=True, layer=layer, num_layers=size.memory_layers
    )
    return stack


def _memory_encoder(size: Sam2Size) -> nn.Module:
    block = CXBlock(dim=size.width, kernel_size=7, padding=3, layer_scale_init_value=1e-6, use_dwconv=True)
    encoder: nn.Module = MemoryEncoder(
        out_dim=_MEMORY_WIDTH,
        in_dim=size.width,
        position_encoding=_sine(_MEMORY_WIDTH),
        mask_downsampler=MaskDownSampler(kernel_size=3, stride=2, padding=1, embed_dim=size.width),
        fuser=Fuser(block, num_layers=2),
    )
    return encoder


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to segment.

    Parameters
    ----------
    text
        Token embeddings of the sentences, float, shape (n, tokens, text width).
    boxes
        Corners (x0, y0, x1, y1) in pixels of the image, float, shape (n, 4); NaN for no box. None for no box
        at all.
    """

    text: Tensor
    boxes: Tensor | None = None

    def points(self) -> tuple[Tensor, Tensor]:
        """Corners (n, 2, 2) as points (x, y) and their labels (n, 2); label -1 where there is no box."""
        number = len(self.text)
        if self.boxes is None:
            empty = torch.zeros(number, 2, 2, device=self.text.device)
            return empty, torch.full((number, 2), _NO_POINT, dtype=torch.int32, device=self.text.device)
        given = ~self.boxes.isnan().any(1, keepdim=True)
        labels = torch.tensor([_BOX_START, _BOX_END], dtype=torch.int32, device=self.boxes.device)
        return self.boxes.nan_to_num().reshape(-1, 2, 2), torch.where(given, labels, _NO_POINT)


@dataclass(frozen=True, slots=True)
class Features:
    """Features of n slices: levels, finest first, (n, c, h, w), and their position encodings."""

    levels: tuple[Tensor, ...]
    positions: tuple[Tensor, ...]

    def take(self, index: Tensor | slice) -> Features:
        """The same of some of the slices."""
        return Features(tuple(one[index] for one in self.levels), tuple(one[index] for one in self.positions))


@dataclass(frozen=True, slots=True)
class Frame:
    """Answer for one slice of each of n objects.

    Parameters
    ----------
    logits
        Mask logits, float32, shape (n, image size, image size); 0 is the 50 % consensus.
    iou
        Estimated IoU, shape (n,).
    presence
        Logit that the object is on the slice, shape (n,).
    """

    logits: Tensor
    iou: Tensor
    presence: Tensor


class TextPromptedSam2(SAM2Base):  # type: ignore[misc]  # sam2 has no types
    """SAM 2 whose prompt is a sentence.

    Parameters
    ----------
    size
        Published weights fit the sizes in `PUBLISHED`.
    """

    def __init__(self, size: Sam2Size) -> None:
        super().__init__(
            image_encoder=_image_encoder(size),
            memory_attention=_memory_attention(size),
            memory_encoder=_memory_encoder(size),
            num_maskmem=7,
            image_size=size.image_size,
            sigmoid_scale_for_mem_enc=20.0,
            sigmoid_bias_for_mem_enc=-10.0,
            directly_add_no_mem_embed=True,
            no_obj_embed_spatial=True,
            use_high_res_features_in_sam=True,
            iou_prediction_use_sigmoid=True,
            use_obj_ptrs_in_encoder=True,
            add_tpos_enc_to_obj_ptrs=True,
            proj_tpos_enc_in_obj_ptrs=True,
            use_signed_tpos_enc_to_obj_ptrs=True,
            only_obj_ptrs_in_the_past_for_eval=True,
            pred_obj_scores=True,
            pred_obj_scores_mlp=True,
            fixed_no_obj_ptr=True,
            use_mlp_for_obj_ptr_proj=True,
        )
        self.size = size
        self.text_projection = nn.Linear(size.text_width, size.width)
        # SAM2Base has no argument for either on the way to and from `_forward_sam_heads`
        self._text: Tensor | None = None
        self._frame: Frame

    def encode(self, images: Tensor) -> Features:
        """Features of slices, computed once for all prompts and passes through the memory.

        Parameters
        ----------
        images
            Grey values 0..1, float, shape (n, 3, image size, image size); the channels are a slice between
            its neighbours, or three times the same.
        """
        mean, deviation = images.new_tensor(_MEAN), images.new_tensor(_DEVIATION)
        out = self.forward_image((images - mean[:, None, None]) / deviation[:, None, None])
        levels = tuple(out["backbone_fpn"][-self.num_feature_levels :])
        return Features(levels, tuple(out["vision_pos_enc"][-self.num_feature_levels :]))

    def sequence(
        self,
        frames: Iterable[Features],
        prompt: Prompt,
        *,
        length: int = 1,
        stop: Callable[[Frame], bool] | None = None,
    ) -> list[Frame]:
        """Segment the first frame from the prompt alone and the others from prompt and memory.

        Parameters
        ----------
        frames
            Neighbouring slices in the order of the walk, the key slice first; n objects in each.
        prompt
            One sentence for each object; it is known on every slice.
        length
            Number of frames; a frame is asked for only when the walk gets there.
        stop
            Asked after each frame; a true answer ends the walk.

        Returns
        -------
        list of Frame
            One for each frame that was walked.
        """
        memory: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        coordinates, labels = prompt.points()
        answers: list[Frame] = []
        self._text = self.text_projection(prompt.text)
        try:
            for index, features in enumerate(frames):
                out = self.track_step(
                    frame_idx=index,
                    is_init_cond_frame=index == 0,
                    current_vision_feats=[one.flatten(2).permute(2, 0, 1) for one in features.levels],
                    current_vision_pos_embeds=[one.flatten(2).permute(2, 0, 1) for one in features.positions],
                    feat_sizes=[(one.shape[-2], one.shape[-1]) for one in features.levels],
                    point_inputs={"point_coords": coordinates, "point_labels": labels},
                    mask_inputs=None,
                    output_dict=memory,
                    num_frames=length,
                    run_mem_encoder=index + 1 < length,
                )
                memory["cond_frame_outputs" if index == 0 else "non_cond_frame_outputs"][index] = out
                answers.append(self._frame)
                if stop is not None and stop(self._frame):
                    break
        finally:
            self._text = None
        return answers

    def _forward_sam_heads(
        self,
        backbone_features: Tensor,
        point_inputs: dict[str, Tensor] | None = None,
        mask_inputs: Tensor | None = None,
        high_res_features: list[Tensor] | None = None,
        multimask_output: bool = False,
    ) -> tuple[Tensor, ...]:
        """As in `SAM2Base`, with the text tokens beside the sparse ones; always a single mask.

        In training a mask is not blanked where the object is thought absent, so that it can be learnt.
        """
        if self._text is None or point_inputs is None or mask_inputs is not None or multimask_output:
            raise ValueError("text-prompted SAM 2 takes a sentence and optional boxes, see `sequence`")
        sparse, dense = self.sam_prompt_encoder(
            points=(point_inputs["point_coords"], point_inputs["point_labels"]), boxes=None, masks=None
        )
        logits, iou, tokens, presence = self.sam_mask_decoder(
            image_embeddings=backbone_features,
            image_pe=self.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=torch.cat([sparse, self._text.to(sparse.dtype)], dim=1),
            dense_prompt_embeddings=dense,
            multimask_output=False,
            repeat_image=False,
            high_res_features=high_res_features,
        )
        low = logits.float()
        size = (self.image_size, self.image_size)
        high = functional.interpolate(low, size=size, mode="bilinear", align_corners=False)
        self._frame = Frame(high[:, 0], iou[:, 0].float(), presence[:, 0].float())
        is_present = (presence > 0).float()
        if not self.training:
            low = torch.where(is_present[:, None, None] > 0, low, NO_OBJ_SCORE)
            high = torch.where(is_present[:, None, None] > 0, high, NO_OBJ_SCORE)
        pointer = is_present * self.obj_ptr_proj(tokens[:, 0]) + (1 - is_present) * self.no_obj_ptr
        return low, high, iou, low, high, pointer, presence
