"""Networks at the published sizes, for the checkpoints of the catalogue.

Built from the packages' own classes and configurations, so that keys and shapes are the publishers'. Weights
are random until `inference.weights.load_into` has filled them: nothing here loads or downloads any. Each
package is imported when its first network is built: together they take seconds, and a command needs one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from inference.errors import ModelUnavailableError
from inference.weights import layout_of

_SAM2 = "configs/sam2.1/sam2.1_hiera_{}.yaml"

#: MedSAM2's configuration sam2.1_hiera_t512: SAM 2.1 tiny for 512 pixels, so 32 x 32 image tokens.
_AT_512 = (
    "++model.image_size=512",
    "++model.memory_attention.layer.self_attention.feat_sizes=[32,32]",
    "++model.memory_attention.layer.cross_attention.feat_sizes=[32,32]",
)


def _sam2(size: str, overrides: tuple[str, ...] = ()) -> nn.Module:
    from sam2.build_sam import build_sam2  # noqa: PLC0415 - see above

    # no postprocessing: its hole filling is a CUDA extension, its multimask rule is for clicks
    model: nn.Module = build_sam2(
        _SAM2.format(size),
        ckpt_path=None,
        device="cpu",
        hydra_overrides_extra=list(overrides),
        apply_postprocessing=False,
    )
    return model


def _clip() -> nn.Module:
    from inference.openclip_model import VIT_B_32, build_clip  # noqa: PLC0415 - see above

    model: nn.Module = build_clip(VIT_B_32)
    return model


def _retinanet() -> nn.Module:
    from inference import retinanet  # noqa: PLC0415 - see above

    return retinanet.build_network()


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "monai-retinanet": _retinanet,
    "sam2.1-hiera-tiny": partial(_sam2, "t"),
    "sam2.1-hiera-small": partial(_sam2, "s"),
    "sam2.1-hiera-base-plus": partial(_sam2, "b+"),
    "sam2.1-hiera-large": partial(_sam2, "l"),
    "medsam2": partial(_sam2, "t", _AT_512),
    "clip-vit-b-32": _clip,
}


def build_network(name: str) -> nn.Module:
    """Build a network of the catalogue on the CPU, in evaluation mode, with random weights.

    Raises
    ------
    ModelUnavailableError
        No such network.
    """
    if name not in BUILDERS:
        raise ModelUnavailableError(f"there is no network {name!r}; there are {', '.join(BUILDERS)}")
    return BUILDERS[name]().eval()


def expected_layout(name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes that a checkpoint of this network must have.

    Raises
    ------
    ModelUnavailableError
        No such network.
    """
    return layout_of(build_network(name).state_dict())
