"""U-Net with guides as a prior on the short axes of M&Ms-2 (Martín-Isla et al., IEEE JBHI 2023).

    python run.py --config=configs/mnms2_unet.py --workdir=runs/mnms2 --config.dataset.manual_dir=PATH_TO_MNMS2

Long axes are never read. Not trained at full size yet.
"""

from jras_jax import config


def get_config():
    """256 x 256, U-Net of 32 base channels, the small retriever from scratch."""
    c = config.defaults()
    c.name = "mnms2_unet"
    c.dataset.name = "mnms2"
    c.backbone.options.deep_supervision = True
    c.retriever.image_size = 128
    c.train.num_steps = 20_000
    c.train.batch_size = 16
    return c
