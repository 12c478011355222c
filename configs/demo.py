"""A small J-RAS model on the built-in cine-MRI phantom, beside the same model without retrieval.

    python run.py --config=configs/demo.py

Trains both, evaluates on the phantom's test patients, writes runs/demo/report.html; 3 to 5 minutes on 2 CPU cores.
Expect a mean foreground Dice of 0.80 or more (measured: benchmarks/RESULTS.md).
"""

from jras_jax import config


def get_config():
    """The demo."""
    c = config.defaults()
    c.name = "demo"
    c.dataset.name = "phantom"
    c.dataset.image_size = 64
    c.dataset.spacing_mm = 2.2
    c.backbone.options.base_channels = 12
    c.backbone.options.levels = 4
    c.retriever.image_size = 32
    c.optim.lr_backbone = 3e-3
    c.optim.warmup_steps = 30
    c.train.num_steps = 350
    c.train.batch_size = 12
    c.train.eval_every = 175
    c.train.checkpoint_every = 175
    c.train.log_every = 10
    c.train.with_baseline = True
    c.eval.split = "test"
    return c
