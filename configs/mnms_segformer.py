"""SegFormer-B4 and RAD-DINO on M&Ms: the J-RAS paper's setting (arXiv 2510.09953), with honest splits.

    python run.py --config=configs/mnms_segformer.py --workdir=runs/mnms_segformer \
        --config.dataset.manual_dir=PATH_TO_MNMS \
        --config.backbone.init_from=SEGFORMER_B4 --config.retriever.init_from=RAD_DINO

The two init_from folders come from `jras convert` (README); without them both start from scratch.
Not trained at full size yet; two steps at reduced size are a test.
"""

from jras_jax import config


def get_config():
    """The paper's setting, see `jras_jax.config.paper`."""
    return config.paper("mnms", "segformer", "b4")
