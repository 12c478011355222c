"""U-Net with guides as a prior on COVID-19-CT-Seg, chest CT with lungs and infection (Ma et al., Medical Physics 2021).

    python run.py --config=configs/covid_unet.py --workdir=runs/covid --config.dataset.manual_dir=PATH_TO_COVID

The 20 volumes of Zenodo 3757476: which lung CT the third version of the J-RAS paper used is not known for certain, and
this is the public set with official masks of lungs and infection. Not trained at full size yet.
"""

from jras_jax import config


def get_config():
    """256 x 256 pixels of 1.6 mm, which show a chest whole; U-Net of 32 base channels, the small retriever."""
    c = config.defaults()
    c.name = "covid_unet"
    c.dataset.name = "covid"
    c.dataset.spacing_mm = 1.6
    c.dataset.frame = "whole"
    c.backbone.options.deep_supervision = True
    c.retriever.image_size = 128
    c.train.num_steps = 20_000
    c.train.batch_size = 16
    return c
