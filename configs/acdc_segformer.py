"""SegFormer-B4 and RAD-DINO on ACDC: the J-RAS paper's headline setting (arXiv 2510.09953), with honest splits.

    python run.py --config=configs/acdc_segformer.py --workdir=runs/acdc_segformer \
        --config.dataset.manual_dir=PATH_TO_ACDC \
        --config.backbone.init_from=SEGFORMER_B4 --config.retriever.init_from=RAD_DINO

The two init_from folders come from `jras convert` (README); without them both start from scratch.
The paper reports Dice 0.9115 with J-RAS and 0.8708 without, under its own (leaky, 2-D) protocol.
"""

from jras_jax import config


def get_config():
    """The paper's setting, see `jras_jax.config.paper`."""
    return config.paper("acdc", "segformer", "b4")
