"""SAM ViT-B with LoRA and RAD-DINO on M&Ms: a backbone of the J-RAS paper (arXiv 2510.09953), with honest splits.

    python run.py --config=configs/mnms_sam.py --workdir=runs/mnms_sam \
        --config.dataset.manual_dir=PATH_TO_MNMS \
        --config.backbone.init_from=SAM_VIT_B --config.retriever.init_from=RAD_DINO

The two init_from folders come from `jras convert` (README). In the image encoder only LoRA of rank 4 on
queries and values trains, as in SAMed (arXiv 2304.13785); the mask decoder trains whole. The encoder needs its
init_from: a random one would stay random. To train it whole: --config.backbone.options.lora_rank=0 and
--config.backbone.frozen="('decoder/position_frequencies',)".
"""

from jras_jax import config
from jras_jax.models import sam


def get_config():
    """The paper's setting, see `jras_jax.config.paper`."""
    c = config.paper("mnms", "sam", "vit_b")
    c.backbone.options.lora_rank = 4
    c.backbone.frozen = sam.FROZEN["lora"]
    return c
