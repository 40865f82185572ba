"""A training step and sampling of a flow on images, beside TorchCFM's U-Net and couplings in PyTorch.

    python -m benchmarks.flow [--quick] [--repeats N] [--out FILE]

Both networks are U-Nets on 32 x 32 x 3 images with the same widths, levels, blocks and attention, and so with nearly the same
number of parameters. A step is the exact coupling of a minibatch, the loss, its gradient, clipping, Adam and the moving average;
a sample is ten Euler steps. On a CPU in float32, PyTorch eager; on a GPU in bfloat16, PyTorch compiled. Unit: images.

The roofline: a multiply-add of every convolution and product once forward and twice backward, at the machine's matrix rate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import plural_jax as pj
from benchmarks import report, timing
from benchmarks.timing import Comparison
from plural_jax.models.flow_training import start_training, train

LIBRARY, ONE_DEVICE, PEER = "library, a share on each device", "library, one device", "TorchCFM, PyTorch"
SMALL = {"channels": 32, "multipliers": (1, 2, 2), "blocks": 1, "attention": (16,), "heads": 2, "dropout": 0.0}
PAPER = {"channels": 128, "multipliers": (1, 2, 2, 2), "blocks": 2, "attention": (16,), "heads": 4, "dropout": 0.0}


def library(
    sizes: dict[str, Any], dtype: str, images: np.ndarray, steps: int, devices: list[Any]
) -> tuple[Any, Any, int, float]:
    """Training steps and sampling as functions without arguments, the parameters' number, operations of a forward pass."""
    network = pj.models.unet(pj.models.UNetConfig(**sizes, dtype=dtype))
    training = pj.models.FlowTraining(num_steps=steps, batch_size=len(images), flip=False)
    state = start_training(training, network.init(jax.random.key(0)))
    mesh = None
    if len(devices) > 1:
        mesh = jax.make_mesh((len(devices),), ("batch",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
    data = jnp.asarray(images)
    step = jax.jit(lambda key, state, data: train(network, training, key, state, data, mesh=mesh))
    model = pj.models.flow(
        network, training, integrator=pj.models.Integrator("euler", 10), batch_size=len(images), mesh=mesh
    )
    sample = jax.jit(lambda key, params: model.sample(key, params, len(images)))
    forward = jax.jit(lambda params, x: network.apply(params, jnp.zeros(1), x, None))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # elsewhere nothing is counted
        shapes = jax.eval_shape(lambda: (state.params, jnp.zeros((1, 32, 32, 3))))
        costs = forward.lower(*shapes).cost_analysis() or {}
    return (
        lambda: step(jax.random.key(1), state, data)[1].loss,
        lambda: sample(jax.random.key(2), state.params),
        pj.models.num_params(state.params),
        float(costs.get("flops", np.nan)),
    )


def peer(sizes: dict[str, Any], images: np.ndarray, steps: int) -> tuple[Any, Any, int]:
    """The same with TorchCFM."""
    import torch
    from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher
    from torchcfm.models.unet.unet import UNetModelWrapper

    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    torch.set_num_threads(timing.cores())
    network = UNetModelWrapper(
        dim=(3, 32, 32),
        num_channels=sizes["channels"],
        channel_mult=list(sizes["multipliers"]),
        num_res_blocks=sizes["blocks"],
        num_heads=sizes["heads"],
        num_head_channels=-1,
        attention_resolutions=",".join(map(str, sizes["attention"])),
        dropout=0.0,
    ).to(device)
    apply = torch.compile(network) if gpu else network
    average = [p.detach().clone() for p in network.parameters()]
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4)
    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    data = torch.tensor(images.transpose(0, 3, 1, 2).copy(), device=device)

    def train_steps() -> float:
        for _ in range(steps):
            optimizer.zero_grad()
            t, xt, ut = matcher.sample_location_and_conditional_flow(torch.randn_like(data), data)
            with torch.autocast(device, dtype=torch.bfloat16, enabled=gpu):
                loss = torch.mean((apply(t, xt) - ut) ** 2)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, list(network.parameters()), 1e-4)
        return loss.item()

    def sample() -> Any:
        with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16, enabled=gpu):
            x = torch.randn_like(data)
            for k in range(10):
                x = x + apply(torch.full((len(x),), k / 10, device=device), x) / 10
        return x.cpu()

    return train_steps, sample, sum(p.numel() for p in network.parameters())


def measure(quick: bool, repeats: int | None) -> list[Comparison]:
    """A small U-Net on a CPU, the paper's on a GPU; quick: two steps instead of eight."""
    gpu = jax.default_backend() == "gpu"
    sizes, batch, steps = (PAPER, 128, 20) if gpu else (SMALL, 64, 2 if quick else 8)
    images = np.random.default_rng(0).uniform(-1, 1, (batch, 32, 32, 3)).astype(np.float32)
    devices = jax.local_devices()
    training: dict[str, Callable[[], Any]] = {}
    sampling: dict[str, Callable[[], Any]] = {}
    for name, some in ((LIBRARY, devices), (ONE_DEVICE, devices[:1])):
        if name == LIBRARY or len(devices) > 1:
            ours = library(sizes, "bfloat16" if gpu else "float32", images, steps, some)
            training[name], sampling[name] = ours[:2]
    notes = [f"{ours[2]:,} parameters"]
    if timing.optional("torchcfm") is not None:
        theirs = peer(sizes, images, steps)
        training[PEER], sampling[PEER] = theirs[0], theirs[1]
        notes.append(f"TorchCFM's {theirs[2]:,}")
    kind = "bfloat16, GPU" if gpu else "float32, CPU"
    repeats = repeats or (2 if quick else 5)
    return [
        Comparison(
            name=f"flow, {name}",
            workload=f"{what}, batches of {batch}, {kind}; a forward pass takes {ours[3] / 1e6:.0f} M operations an image",
            reference=LIBRARY,
            seconds=timing.turns(contenders, repeats),
            unit="images",
            work=float(batch * (steps if name == "training" else 1)),
            notes=notes,
            extra={"parameters": ours[2], "operations_forward": ours[3]},
        )
        for name, what, contenders in (
            ("training", f"{steps} OT-CFM steps", training),
            ("sampling", "ten Euler steps", sampling),
        )
    ]


if __name__ == "__main__":
    report.main("flow", __doc__, measure, jax_num_cpu_devices=timing.cores())
