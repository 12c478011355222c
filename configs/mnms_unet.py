"""U-Net with guides as a prior on M&Ms (Campello et al., IEEE TMI 2021).

python run.py --config=configs/mnms_unet.py --workdir=runs/mnms_unet --config.dataset.manual_dir=PATH_TO_MNMS
"""

from jras_jax import config


def get_config():
    """256 x 256, U-Net of 32 base channels, the small retriever from scratch."""
    c = config.defaults()
    c.name = "mnms_unet"
    c.dataset.name = "mnms"
    c.backbone.options.deep_supervision = True
    c.retriever.image_size = 128
    c.train.num_steps = 20_000
    c.train.batch_size = 16
    return c
