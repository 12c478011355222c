"""The whole train step and the segmenter of every backbone lower for GPU and TPU, and contain no CPU form.

Nothing is compiled or run, so that a machine without an accelerator finds what an accelerator's lowering rejects. A
gallery in host memory is not covered: its `jax.pure_callback` takes the platform of the mesh's devices, which are CPUs
here, and JAX refuses to lower it for another one.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from jax import export

from benchmarks.setting import joint_config
from benchmarks.sizes import GPU
from jras_jax import joint, kernels, mesh, models
from jras_jax.data.grid import Grid
from jras_jax.inference.segmenter import Segmenter
from jras_jax.joint.build import build_model, init_variables
from jras_jax.retrieval.gallery import Gallery
from jras_jax.training import state, step
from tests.test_kernels import OPERATIONS
from tests.test_models import SMALL

BATCH, ROWS, SIDE = 2, 4, 32
PLATFORMS = ("cuda", "tpu")


def abstract(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype)


class Program:
    """The two jitted programs of a backbone and abstract arguments for them."""

    def __init__(self, config, name):
        options = dict(SMALL[name])
        backbone = {"name": name, "variant": options.pop("variant", ""), "options": options}
        self.config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, **backbone))
        self.mesh = mesh.make_mesh(1, 1, jax.devices()[:1])
        self.model = build_model(self.config)
        self.variables = jax.eval_shape(lambda: init_variables(self.model, self.config))
        pixels = {name: abstract(ROWS, SIDE, SIDE, dtype=jnp.uint8) for name in ("images", "masks")}
        self.gallery = Gallery(
            embeddings=abstract(ROWS, self.config.retriever.dim, dtype=jnp.float32),
            patient=abstract(ROWS),
            valid=abstract(ROWS, dtype=jnp.bool_),
            **pixels,
        )

    def train_step(self):
        params = self.variables["params"]
        extra = {name: value for name, value in self.variables.items() if name != "params"}
        groups = state.parameter_groups(params, self.config.backbone.frozen, self.config.retriever)
        tx = state.build_optimizer(groups, self.config.optim, self.config.train.num_steps)
        before = state.TrainState(abstract(), params, extra, jax.eval_shape(tx.init, params), None)
        shardings = mesh.parameter_shardings(before, self.mesh)
        jitted = step.compile_step(
            step.make_step(self.model, tx, config=self.config, device_mesh=self.mesh), shardings, self.mesh
        )
        batch = {name: abstract(BATCH, SIDE, SIDE, dtype=jnp.uint8) for name in ("image", "mask")}
        batch |= {name: abstract(BATCH) for name in ("patient", "row")}
        return jitted, (before, batch, self.gallery, None, False)

    def segmenter(self):
        made = Segmenter(
            lambda: self.model,
            joint.Selection.of(self.config.retrieval),
            Grid(SIDE, 1.4, unknown_spacing="fit", percentiles=(0.5, 99.5)),
            batch_size=BATCH,
            device_mesh=self.mesh,
            tta=True,
        )
        images = abstract(BATCH, SIDE, SIDE, dtype=jnp.uint8)
        arguments = (self.variables, self.gallery, images, abstract(BATCH), abstract(BATCH), None, None)
        return made.program, arguments


class CpuFormTraced(Exception):
    pass


@pytest.fixture
def forbidden(monkeypatch):
    """Every CPU form raises if it is traced."""

    def raise_(*arguments):
        raise CpuFormTraced

    for module in OPERATIONS:
        monkeypatch.setattr(module, "cpu", raise_)


@pytest.mark.parametrize("name", models.NAMES)
@pytest.mark.parametrize("which", ["train_step", "segmenter"])
def test_programs_of_accelerators_lower_and_hold_no_cpu_form(tiny, forbidden, name, which):
    with kernels.using("reference"):
        jitted, arguments = getattr(Program(tiny.config(), name), which)()
        assert "custom_vjp" not in str(jitted.trace(*arguments).jaxpr)
        lowered = {platform: export.export(jitted, platforms=[platform])(*arguments) for platform in PLATFORMS}
    for platform, exported in lowered.items():
        assert exported.platforms == (platform,)
        text = exported.mlir_module()
        assert "stablehlo.convolution" in text
        # Loops over bands and rows, and the library calls of XLA's CPU backend.
        assert "stablehlo.while" not in text
        assert not re.findall(r"custom_call @\w*(?:cpu|lapack|callback)\w*", text)


@pytest.mark.parametrize("pair", GPU.gpu_pairs)
def test_the_steps_that_a_gpu_is_measured_with_lower_in_bfloat16(pair):
    backbone, retriever = pair.split("+")
    sizes = dataclasses.replace(GPU, image=SIDE, retriever_images={"tiny": 16, "vitb14": 28})
    with kernels.using("reference"):
        jitted, arguments = Program(joint_config(backbone, retriever, sizes), backbone.partition("-")[0]).train_step()
        text = export.export(jitted, platforms=["cuda"])(*arguments).mlir_module()
    assert "xbf16>" in text and "stablehlo.convolution" in text


@pytest.mark.parametrize("which", ["train_step", "segmenter"])
def test_a_traced_cpu_form_would_be_noticed(tiny, forbidden, which):
    with kernels.using("reference"):
        jitted, arguments = getattr(Program(tiny.config(), "unet"), which)()
    with kernels.using("cpu"), pytest.raises(CpuFormTraced):
        jitted.trace(*arguments)


def test_programs_for_cpu_hold_what_is_looked_for(tiny):
    program = Program(tiny.config(), "segformer")
    with kernels.using("cpu"):
        jitted, arguments = program.train_step()
        assert "stablehlo.while" in jitted.lower(*arguments).as_text()
        jitted, arguments = program.segmenter()
        assert "custom_vjp" in str(jitted.trace(*arguments).jaxpr)
