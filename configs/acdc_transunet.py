"""TransUNet (R50, ViT-B/16) and RAD-DINO on ACDC: a backbone of the J-RAS paper (arXiv 2510.09953), with honest splits.

    python run.py --config=configs/acdc_transunet.py --workdir=runs/acdc_transunet \
        --config.dataset.manual_dir=PATH_TO_ACDC \
        --config.backbone.init_from=R50_VIT_B16 --config.retriever.init_from=RAD_DINO

The two init_from folders come from `python -m jras_jax.convert` (README), the first from Google's R50+ViT-B_16.npz
with `--model=transunet --variant=r50_vit_b16`: it starts the encoder, and the decoder is new. Without them both models
start from scratch.
"""

from configs import common


def get_config():
    """The paper's sizes and rates; the last block of the retriever trains, as in the authors' later scripts."""
    c = common.get_config()
    c.name = "acdc_transunet"
    c.dataset.name = "acdc"
    c.backbone.name = "transunet"
    c.backbone.variant = "r50_vit_b16"
    c.backbone.in_channels = 3
    c.retriever.variant = "vitb14"
    c.retriever.image_size = 224
    c.retriever.trained_blocks = 1
    c.retriever.pool = "cls"
    c.retriever.dropout = 0.3
    c.optim.name = "adam"
    c.optim.lr_backbone = 1e-4
    c.optim.lr_retriever = 1e-4
    c.optim.weight_decay = 0.0
    c.train.num_steps = 30_000
    c.train.batch_size = 4
    c.train.dtype = "bfloat16"
    return c
