"""U-Net with guides as a prior on BUSI, breast ultrasound (Al-Dhabyani et al., Data in Brief 2020).

    python run.py --config=configs/busi_unet.py --workdir=runs/busi --config.dataset.manual_dir=PATH_TO_BUSI

The images have no known pixel size: each is scaled to fit the grid, and distances are in pixels. The download does not
say which images are of one woman, so images of one woman may train and validate. Not trained at full size yet.
"""

from jras_jax import config


def get_config():
    """256 x 256, U-Net of 32 base channels, the small retriever from scratch; flips, which ultrasound allows."""
    c = config.defaults()
    c.name = "busi_unet"
    c.dataset.name = "busi"
    c.augment.flip = True
    c.dataset.frame = "whole"
    c.backbone.options.deep_supervision = True
    c.retriever.image_size = 128
    c.train.num_steps = 20_000
    c.train.batch_size = 16
    return c
