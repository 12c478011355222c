"""U-Net with guides as a prior on a folder of your own data.

    jras check PATH
    python run.py --config=configs/folder.py --workdir=runs/own --config.dataset.manual_dir=PATH

PATH has nnU-Net's raw layout (dataset.json, imagesTr, labelsTr), or holds pairs NAME.png and NAME_gt.png (NIfTI, PNG or
TIFF) with a dataset.json that names the classes: {"labels": {"background": 0, "tumour": 1}}. docs/OWN_DATA.md has the
rest. At full size it needs a GPU. On a CPU: --config.dataset.image_size=128 --config.backbone.options.base_channels=16
--config.train.num_steps=1500.
"""

from jras_jax import config


def get_config():
    """256 x 256, U-Net of 32 base channels, the small retriever from scratch."""
    c = config.defaults()
    c.name = "folder"
    c.dataset.name = "folder"
    c.augment.flip = False
    c.dataset.frame = "whole"
    c.backbone.options.deep_supervision = True
    c.retriever.image_size = 128
    c.train.num_steps = 20_000
    c.train.batch_size = 16
    return c
