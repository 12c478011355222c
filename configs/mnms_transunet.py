"""TransUNet (R50, ViT-B/16) and RAD-DINO on M&Ms: a backbone of the J-RAS paper (arXiv 2510.09953), with honest splits.

    python run.py --config=configs/mnms_transunet.py --workdir=runs/mnms_transunet \
        --config.dataset.manual_dir=PATH_TO_MNMS \
        --config.backbone.init_from=R50_VIT_B16 --config.retriever.init_from=RAD_DINO

The two init_from folders come from `jras convert` (README), the first from Google's R50+ViT-B_16.npz
with `--model=transunet --variant=r50_vit_b16`: it starts the encoder, and the decoder is new. Without them both models
start from scratch.
"""

from jras_jax import config


def get_config():
    """The paper's setting, see `jras_jax.config.paper`."""
    return config.paper("mnms", "transunet", "r50_vit_b16")
