"""Every knob of a run and its default, once: the unit or the choices, and where the value comes from.

METHOD below means the J-RAS paper (arXiv 2510.09953) and its authors' published scripts; nnU-Net means
Isensee et al., Nature Methods 2021. The other files of this folder change a few of these values each.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The defaults: U-Net with prototype fusion on ACDC, a small retriever, sizes for one GPU."""
    c = ml_collections.ConfigDict()
    c.name = "common"
    c.seed = 0  # fixes initialisation, data order, augmentation and selection noise

    c.dataset = ml_collections.ConfigDict()
    c.dataset.name = "acdc"  # 'acdc' | 'mnms' | 'phantom' (written by the project in the ACDC layout)
    c.dataset.manual_dir = ""  # folder of the official download, as the challenge ships it
    c.dataset.data_dir = "data_cache"  # where the prepared TFDS data set is kept
    c.dataset.num_folds = 5  # patients are split into this many folds, stratified
    c.dataset.fold = 0  # which fold validates; the others train
    c.dataset.split_seed = 0  # of the folds; the same for every run that is to be compared
    c.dataset.image_size = 256  # S: side of the square model grid in pixels (METHOD: 256)
    c.dataset.spacing_mm = 1.4  # in-plane pixel size of the model grid, mm; 0 keeps the native one
    c.dataset.unknown_spacing = "fit"  # scans without spacing: 'fit' the field of view to the grid | 'crop' natively
    c.dataset.percentiles = (0.5, 99.5)  # of each volume, mapped to 0 and 255 (nnU-Net's clipping)
    c.dataset.drop_empty = True  # training slices without foreground are dropped (METHOD)
    c.dataset.max_train_patients = 0  # 0 all; n: the first n of the shuffled training patients (few-label studies)
    c.dataset.phantom_patients = 20  # training patients of the phantom
    c.dataset.phantom_test_patients = 8

    c.augment = ml_collections.ConfigDict()
    c.augment.enabled = True
    c.augment.rotate_deg = 30.0  # uniform in +-, degrees
    c.augment.scale = 0.2  # uniform in 1 +-
    c.augment.shift = 0.1  # uniform in +-, share of the grid's side
    c.augment.retriever_share = 0.33  # of the geometric ranges, for the view that the retriever sees in training
    c.augment.flip = False  # left-right flips put the RV on the wrong side of the heart: off where orientation is known
    c.augment.gamma = 0.3  # exponent uniform in exp(+-)
    c.augment.contrast = 0.25  # factor uniform in 1 +- about the slice's mean
    c.augment.brightness = 0.15  # uniform in +-, of the [0, 1] range
    c.augment.noise_std = 0.05  # standard deviation uniform in [0, this], of the [0, 1] range
    c.augment.probability = 0.5  # of each kind of intensity change, for each slice

    c.backbone = ml_collections.ConfigDict()
    c.backbone.name = "unet"  # 'unet' | 'segformer' | 'transunet' | 'sam'
    c.backbone.variant = ""  # size table of the model: segformer 'b0'..'b5', sam 'vit_b' ..., '' for the U-Net
    c.backbone.options = ml_collections.ConfigDict()  # further keywords of the model class
    c.backbone.in_channels = 1  # 3 repeats grey to RGB, as ImageNet weights want it
    c.backbone.init_from = ""  # converted weights (python -m jras_jax.convert), '' from scratch
    c.backbone.frozen = ()  # regular expressions of parameter paths that do not train

    c.retriever = ml_collections.ConfigDict()
    c.retriever.variant = "tiny"  # 'tiny' | 'vits14' | 'vitb14' (RAD-DINO, METHOD) | 'vitl14' | 'vitg14'
    c.retriever.image_size = 64  # side of the retriever's own input, pixels; a multiple of the patch (8 tiny, 14)
    c.retriever.trained_blocks = -1  # -1 all, 0 the projection only, n the last n blocks (METHOD's later scripts: 1)
    c.retriever.lora_rank = 0  # above 0: of the blocks that train, only LoRA matrices of this rank do
    c.retriever.pool = "grid"  # the head sees 'cls' (METHOD) | 'grid', beside it the patch tokens
    c.retriever.hidden = 256  # METHOD
    c.retriever.dim = 128  # METHOD
    c.retriever.dropout = 0.0  # before the head's ReLU (METHOD: 0.3)
    c.retriever.init_from = ""  # converted DINOv2 weights, or the workdir of a pretrain_retriever run

    c.retrieval = ml_collections.ConfigDict()
    c.retrieval.enabled = True  # False: the same backbone without guides, the baseline
    # 'top_k' (METHOD) | 'softmax' over the whole gallery | 'gumbel_top_k' | 'sparsemax'; controls: 'random' | 'oracle'
    c.retrieval.strategy = "top_k"
    c.retrieval.top_k = 2  # guides a query (METHOD)
    c.retrieval.temperature = 0.1  # of the softmax over similarities (METHOD)
    c.retrieval.exclude = "patient"  # never a guide: the query's own 'patient' | 'slice' | 'none' (METHOD, leaks)
    c.retrieval.recall_target = 1.0  # below 1: approximate search (jax.lax.approx_max_k) with this recall
    c.retrieval.gallery_memory = "device"  # images and masks: 'device' | 'host' (galleries that do not fit)
    c.retrieval.refresh = "epochs"  # unit of refresh_every: 'epochs' | 'steps' | 'rolling' (a part at every step)
    c.retrieval.refresh_every = 1  # between two computations of the gallery's embeddings (METHOD: 1 epoch)
    c.retrieval.overlap_weight = 1.0  # weight of the loss that ranks the gallery by the masks' overlap, 0 off
    c.retrieval.overlap_sharpness = 0.05  # softmax temperature of that ranking's target, in Dice
    c.retrieval.contrast_weight = 0.0  # METHOD v3: weight of the contrastive loss over candidates, 0 off
    c.retrieval.contrast_candidates = 4  # candidates judged by their segmentation loss, per query
    c.retrieval.contrast_every = 4  # steps between two contrastive terms
    c.retrieval.contrast_temperature = 0.1  # of the contrastive softmax over cosine similarities

    c.fusion = ml_collections.ConfigDict()
    c.fusion.name = "prototype"  # 'prototype' | 'concat' (METHOD's paper) | 'adapter' | 'cross_attention'
    c.fusion.guide_gradient = False  # True: the encoder also trains through the guides' features (a slower step)
    c.fusion.options = ml_collections.ConfigDict()  # further keywords of the fusion class

    c.loss = ml_collections.ConfigDict()
    c.loss.dice_weight = 1.0  # METHOD: (1 - mean soft Dice over all classes) + cross-entropy
    c.loss.ce_weight = 1.0
    c.loss.dice_batch = True  # Dice over the whole batch (nnU-Net's batch Dice) rather than slice by slice
    c.loss.deep_weight = 0.5  # each coarser output of deep supervision counts this much of the one above it (nnU-Net)

    c.optim = ml_collections.ConfigDict()
    c.optim.name = "adamw"  # 'adamw' | 'adam' (METHOD joint) | 'sgd' (nnU-Net: momentum 0.99, Nesterov)
    c.optim.lr_backbone = 1e-3  # peak learning rate of backbone and fusion
    c.optim.lr_retriever = 1e-3  # peak learning rate of the retriever (METHOD, pre-trained: 1e-4)
    c.optim.weight_decay = 1e-4  # decoupled; on kernels only
    c.optim.warmup_steps = 100
    c.optim.final_lr_factor = 0.01  # cosine decay ends at this share of the peak
    c.optim.grad_clip = 1.0  # global norm; 0 off
    c.optim.ema_decay = 0.0  # of the parameters used to evaluate; 0 off

    c.train = ml_collections.ConfigDict()
    c.train.num_steps = 10_000  # length of the run
    c.train.batch_size = 8  # slices a step, over all devices
    c.train.dtype = "float32"  # compute type: 'float32' | 'bfloat16' (parameters stay float32)
    c.train.eval_every = 1_000  # steps between validations
    c.train.checkpoint_every = 1_000  # steps between checkpoints
    c.train.log_every = 50  # steps between lines of metrics.csv
    c.train.with_baseline = False  # also train the same run without retrieval, in WORKDIR/baseline
    c.train.validate_patients = 0  # patients of the validation fold scored in training; 0 all

    c.pretrain = ml_collections.ConfigDict()  # --mode=pretrain_retriever: SimCLR's NT-Xent (METHOD)
    c.pretrain.num_steps = 2_000
    c.pretrain.batch_size = 70  # METHOD
    c.pretrain.lr = 1e-3  # METHOD (Adam), x0.1 after 70% of the steps
    c.pretrain.weight_decay = 1e-5  # METHOD
    c.pretrain.temperature = 2.0  # METHOD, on un-normalised dot products
    c.pretrain.normalise = False  # True: cosine similarities (then a temperature of 0.1 to 0.5 is usual)
    c.pretrain.neighbour_probability = 0.5  # a pair is a neighbouring slice, else two views of one slice

    c.mesh = ml_collections.ConfigDict()
    c.mesh.data = -1  # devices along the batch; -1 all that remain
    c.mesh.model = 1  # devices that share one copy of large kernels

    c.eval = ml_collections.ConfigDict()
    c.eval.split = "validation"  # 'validation' the fold | 'test' the official test set | 'train'
    c.eval.batch_size = 16  # slices a call; the last call is padded
    c.eval.gallery = "train"  # whose cases guide: the training patients of the fold, always disjoint from val and test
    c.eval.postprocess = "none"  # 'none' | 'largest_component' per structure
    c.eval.tta = False  # average over rotations by -10, 0 and 10 degrees (test-time augmentation)
    c.eval.evidence_cases = 8  # cases whose slices and guides are kept for the report
    return c


def paper(dataset: str, backbone: str, variant: str) -> ml_collections.ConfigDict:
    """The J-RAS paper's sizes and rates for a pre-trained backbone and RAD-DINO (METHOD), at its grid of 256 pixels.

    The last block of the retriever trains, as in the later scripts. Fusion, leak rule and the ranking loss stay
    this project's: --config.fusion.name=concat --config.retrieval.overlap_weight=0.0 are the paper's.
    """
    c = get_config()
    c.name = f"{dataset}_{backbone}"
    c.dataset.name = dataset
    c.backbone.name = backbone
    c.backbone.variant = variant
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
