"""U-Net with guides as a prior on ACDC (Bernard et al., IEEE TMI 2018).

    python run.py --config=configs/acdc_unet.py --workdir=runs/acdc_unet --config.dataset.manual_dir=PATH_TO_ACDC

At full size it needs a GPU and has not been measured yet. On 2 CPU cores, at 128 pixels and 16 base channels, 1,500
steps of batch 12 with prototype fusion on whole slices took 32 minutes and gave a mean 3-D Dice of 0.869 on fold 0's 16
patients (80 patients in all; the command is in benchmarks/RESULTS.md).
"""

from jras_jax import config


def get_config():
    """256 x 256, U-Net of 32 base channels, the small retriever from scratch."""
    c = config.defaults()
    c.name = "acdc_unet"
    c.dataset.name = "acdc"
    c.backbone.options.deep_supervision = True
    c.retriever.image_size = 128
    c.train.num_steps = 20_000
    c.train.batch_size = 16
    return c
