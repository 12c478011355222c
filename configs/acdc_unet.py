"""U-Net with prototype guides on ACDC (Bernard et al., IEEE TMI 2018).

python run.py --config=configs/acdc_unet.py --workdir=runs/acdc_unet --config.dataset.manual_dir=PATH_TO_ACDC
"""

from configs import common


def get_config():
    """256 x 256, U-Net of 32 base channels, the small retriever from scratch."""
    c = common.get_config()
    c.name = "acdc_unet"
    c.dataset.name = "acdc"
    c.backbone.options.deep_supervision = True
    c.retriever.image_size = 128
    c.train.num_steps = 20_000
    c.train.batch_size = 16
    return c
