"""SegFormer-B4 and RAD-DINO on M&Ms: the J-RAS paper's setting (arXiv 2510.09953), with honest splits.

    python run.py --config=configs/mnms_segformer.py --workdir=runs/mnms_segformer \
        --config.dataset.manual_dir=PATH_TO_MNMS \
        --config.backbone.init_from=SEGFORMER_B4 --config.retriever.init_from=RAD_DINO

The two init_from folders come from `python -m jras_jax.convert` (README); without them both start from scratch.
Not trained at full size yet; two steps at reduced size are a test.
"""

from configs import common


def get_config():
    """The paper's sizes and rates; the last block of the retriever trains, as in the authors' later scripts."""
    c = common.get_config()
    c.name = "mnms_segformer"
    c.dataset.name = "mnms"
    c.backbone.name = "segformer"
    c.backbone.variant = "b4"
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
