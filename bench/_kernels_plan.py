"""A training step as launches, layer by layer: ours, stacked library calls, and the plain ANN, timed by a model."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import _bench as bench
import torch
from _kernels_layers import FORMATS, SURROGATE_WIDTH, Number, plan_pass
from _plan_model import Cost, Machine, elementwise, library_products, products
from torch import Tensor, nn

from ttfs_kernels.contraction import Geometry
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.triton_backend import standardisation as standardise
from ttfs_kernels.triton_backend.configs import Config, default_config
from ttfs_kernels.triton_backend.formulation import Chip
from ttfs_kernels.triton_backend.launch import Device, Launch
from ttfs_kernels.triton_backend.problem import PASSES, Problem
from ttfs_kernels.triton_backend.work import cut, executed_flops, tap_steps, weight_blocks
from ttfs_triton.nn import DFTConv2d, DFTLinear, EarliestSpikePool2d, networks
from ttfs_triton.nn.models import computes_pool
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLayer

OURS, STACKED, ANN = "ours", "stacked", "ANN"
PROVIDERS = (OURS, STACKED, ANN)
WHOLE = "network"
WIDE_BYTES = 4  # of parameters and moments, float32


class Part(NamedTuple):
    """What a provider runs for a pass of a layer."""

    layer: str
    pass_: str
    provider: str
    cost: Cost


@dataclass(frozen=True)
class Network:
    """What of a network the plan needs."""

    spiking: list[tuple[str, Problem]]  # name and shape of the layers of ours, with the pools that they compute
    analog: list[tuple[str, Problem]]  # the same of the encoder's convolution, whichever provider runs the rest
    pools: list[tuple[int, int]]  # elements in and out of each other pool
    weights: list[tuple[int, int]]  # neurons and synapses of each layer
    parameters: int  # all elements that the optimiser updates
    normalised: bool = False  # whether spiking layers have batch norm, in place of standardised weights


def read(model: str, batch: int, number: Number, sigma: float, *, surrogate: bool = False) -> Network:
    """Layers of a network of `ttfs_triton.nn.networks`, on the meta device: no memory, no GPU."""
    with torch.device("meta"):
        network = getattr(networks, model)()
    config = network.config
    found = Network([], [], [], [], sum(p.numel() for p in network.parameters()), config.batch_norm)
    neuron = Neuron(sigma, surrogate_width=SURROGATE_WIDTH if surrogate else 0.0)

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            if isinstance(module, EarliestSpikePool2d):
                if name not in computed:
                    found.pools.append((inputs[0].numel(), output.numel()))
            elif isinstance(module, WeightedLayer):
                spiking = isinstance(module, DFTConv2d | DFTLinear)
                x, own = inputs[0].to(FORMATS[number].dtype), neuron if spiking else Neuron(0.0)
                geometry = None
                if isinstance(module, WeightedConv2d):
                    geometry = Geometry(module.stride, module.padding, module.dilation, module.groups)
                problem = Problem.of(x, module.weight, geometry, own, 2 if name in computed else 1)
                (found.spiking if spiking else found.analog).append((name, problem))
                found.weights.append((module.weight.shape[0], module.weight[0].numel()))

        return hook

    layers = list(network.features.named_children())
    # Layers see hooks, and do not compute the pools behind them then.
    pairs = [pair for pair in pairwise(layers) if computes_pool(pair[0][1], pair[1][1])]
    computed = {name for pair in pairs for name, _ in pair}
    for name, module in layers:
        module.register_forward_hook(note(name))
    network.hidden(torch.empty(batch, config.in_channels, *config.image_size, device="meta"))
    return found


def plan(network: Network, number: Number, machine: Machine) -> list[Part]:
    """Everything that a training step launches, for each provider."""
    parts = []
    for name, problem in network.analog:
        parts += [Part(name, which, provider, cost) for provider in PROVIDERS for which, cost in ann(problem, machine)]
    # The encoder's input needs no gradient.
    parts = [part for part in parts if part.pass_ != "grad_x"]
    for name, problem in network.spiking:
        normalised = network.normalised
        parts += [Part(name, which, OURS, cost) for which, cost in ours(problem, number, machine, normalised)]
        parts += [Part(name, which, STACKED, cost) for which, cost in stacked(problem, machine, normalised)]
        parts += [Part(name, which, ANN, cost) for which, cost in ann(problem, machine, normalised)]
    return parts + [Part(WHOLE, which, provider, cost) for which, provider, cost in whole(network, machine)]


def device(machine: Machine) -> Device:
    return Device(machine.name, Chip("cuda", 90), machine.processors)


def ours(problem: Problem, number: Number, machine: Machine, normalised: bool = False) -> Iterator[tuple[str, Cost]]:
    """Our kernels with their default blocks, a pool in a kernel of its own."""
    here, precision = device(machine), FORMATS[number].precision
    yield from around(problem, machine, normalised)
    problem = problem.unpooled
    for which in PASSES:
        config = default_config(which, problem, here.chip, precision, here.processors)
        main, *others = plan_pass(which, problem, config, precision, here).launches
        executed = executed_flops(which, problem, config)
        # Each block of results reads both sides of its products from the second-level cache, step by step. The forward
        # pass's two products share them; the others' have one side of their own each.
        tile = main.arguments["BLOCK_M"], main.arguments["BLOCK_N"]
        pairs = executed / 2 / math.prod(tile) / (2 if which == "forward" and problem.with_slope else 1)
        cache = pairs * sum(tile) * problem.dtype.itemsize
        programs, longest = working(which, problem, config, main)
        longest *= executed // max(1, cut(which, problem, config).steps)
        dense = flops(which, problem)
        cost = products(machine, programs, executed, dense, moved(main), longest=longest, cache_bytes=cache)
        yield which, cost + elementwise_launches(machine, others)


def working(which: str, problem: Problem, config: Config, launch: Launch) -> tuple[int, int]:
    """Programs of a launch that have something to do, and the steps of the longest."""
    if which == "grad_w":
        # Taps that are inside the map at fewer positions have fewer splits; the rest of the grid ends at once.
        length = launch.arguments["steps_per_split"]
        splits = sum(math.ceil(steps / length) for steps in tap_steps(problem, config))
        return weight_blocks(problem, config) * splits, length
    programs, _, longest = cut(which, problem, config)
    return math.prod(launch.grid), longest if math.prod(launch.grid) == programs else 0


def around(problem: Problem, machine: Machine, normalised: bool) -> Iterator[tuple[str, Cost]]:
    """What all of ours share: the pool, whose backward pass is the local gradient's, and the gradient of the bias.

    Or batch norm with the rule and the pool in it, forward and backward.
    """
    here = device(machine)
    if normalised:
        config = default_config("forward", problem.unpooled, here.chip, "ieee", here.processors)
        _, *launches = plan_pass("normalised", problem, config, "ieee", here).launches
        yield "batch_norm", elementwise_launches(machine, launches)
        return
    if problem.pool > 1:
        pool = plan_pass("pool", problem, None, "ieee", here).launches
        yield "pooling", elementwise_launches(machine, pool)
    first, *sums = plan_pass("local_gradient", problem, None, "ieee", here).launches
    yield "local_gradient", elementwise_launches(machine, [first])
    yield "bias_gradient", elementwise_launches(machine, sums)


def elementwise_launches(machine: Machine, launches: Iterable[Launch]) -> Cost:
    """Of kernels beside the products."""
    cost = Cost()
    for launch in launches:
        arguments, steps = launch.arguments, 1  # of a program's loop
        if "splits" in arguments:
            steps = math.ceil(arguments["splits"] / arguments.get("ROWS", 1))
        elif "rows_per_program" in arguments:
            steps = math.ceil(min(arguments["rows_per_program"], arguments["M"]) / arguments["BLOCK_M"])
        cost += elementwise(machine, moved(launch), math.prod(launch.grid), steps)
    return cost


def moved(launch: Launch) -> int:
    """Bytes of a launch's tensors, each once."""
    values = [value if isinstance(value, tuple) else (value,) for value in launch.arguments.values()]
    return sum(tensor.nbytes for value in values for tensor in value if isinstance(tensor, Tensor))


def stacked(problem: Problem, machine: Machine, normalised: bool = False) -> Iterator[tuple[str, Cost]]:
    """One library call over [x; σ·mask] in all passes; the pool and the local gradient are ours."""
    inputs, outputs, weights = sizes(problem)
    twice, doubled = 2 if problem.with_slope else 1, 2 if problem.surrogate else 1
    masks = elementwise(machine, 3 * inputs) if problem.with_slope else Cost()
    bytes_ = twice * (inputs + outputs) + weights
    operations = [flops(which, problem) for which in PASSES]
    yield from around(problem, machine, normalised)
    call = library_products(machine, twice * problem.rows, problem.group_outputs, operations[0], bytes_)
    rule = Cost() if normalised else elementwise(machine, 2 * twice * outputs)
    yield "forward", masks + call + rule
    positions, moved_x = (
        doubled * problem.batch * problem.height * problem.width,
        doubled * (outputs + inputs) + weights,
    )
    call = library_products(machine, positions, problem.group_inputs, operations[1], moved_x)
    yield "grad_x", call + sum([masks] * (1 if doubled == 1 else 3), Cost())
    call = library_products(machine, problem.group_outputs, problem.depth, operations[2], bytes_, split=True)
    yield "grad_w", masks + call


def ann(problem: Problem, machine: Machine, normalised: bool = False) -> Iterator[tuple[str, Cost]]:
    """The same layer in PyTorch with one contraction a pass, a bias or batch norm, and a clamped ReLU."""
    inputs, outputs, weights = sizes(problem)
    contraction = 2 * problem.rows * problem.out_channels * problem.depth
    bytes_ = inputs + outputs + weights
    forward = library_products(machine, problem.rows, problem.group_outputs, contraction, bytes_)
    # A convolution adds its bias in a launch of its own, a matrix product in its epilogue; then the clamp.
    bias = elementwise(machine, 2 * outputs) if not problem.is_matrix_product and not normalised else Cost()
    yield "forward", forward + bias + elementwise(machine, 2 * outputs)
    if problem.pool > 1:
        size = problem.dtype.itemsize
        passed_on = problem.batch * math.prod(problem.pooled_size) * problem.out_channels
        yield "pooling", max_pool(machine, size, outputs // size, passed_on)
    yield "local_gradient", elementwise(machine, 3 * outputs)
    if normalised:  # reads twice and writes once, backward two tensors twice
        yield "batch_norm", elementwise(machine, 3 * outputs) + elementwise(machine, 5 * outputs)
    else:
        yield "bias_gradient", elementwise(machine, outputs)
    positions = problem.batch * problem.height * problem.width
    yield "grad_x", library_products(machine, positions, problem.group_inputs, contraction, bytes_)
    yield "grad_w", library_products(machine, problem.group_outputs, problem.depth, contraction, bytes_, split=True)


def flops(which: str, problem: Problem) -> int:
    """Operations of a dense pass: 2 a multiply-accumulate, both contractions."""
    contractions = 2 if problem.with_slope and (which != "grad_x" or problem.surrogate) else 1
    return 2 * contractions * problem.rows * problem.out_channels * problem.depth


def sizes(problem: Problem) -> tuple[int, int, int]:
    """Bytes of the inputs, the outputs and the weights."""
    inputs = problem.batch * problem.height * problem.width * problem.in_channels
    elements = inputs, problem.rows * problem.out_channels, problem.out_channels * problem.depth
    inputs, outputs, weights = (count * problem.dtype.itemsize for count in elements)
    return inputs, outputs, weights


def whole(network: Network, machine: Machine) -> Iterator[tuple[str, str, Cost]]:
    """What is not of one layer's passes: (pass, provider, cost)."""
    size = 2
    pooling = sum((max_pool(machine, size, *pool) for pool in network.pools), Cost())
    casts = Cost()
    for weights in map(math.prod, network.weights):
        # To 16 bits for the products, and their gradient back.
        casts += sum([elementwise(machine, (WIDE_BYTES + size) * weights)] * 2, Cost())
    # Adam: parameter, gradient and two moments are read, all but the gradient written.
    optimiser = elementwise(machine, 7 * WIDE_BYTES * network.parameters)
    for provider in PROVIDERS:
        if network.pools:
            yield "pooling", provider, pooling
        yield "optimiser", provider, optimiser
    # Standardised weights are written in 16 bits.
    for provider in PROVIDERS:
        if provider == ANN or network.normalised:
            yield "weight_casts", provider, casts
        else:
            yield "weight_standardisation", provider, standardisation(network, machine)


def max_pool(machine: Machine, size: int, inputs: int, outputs: int) -> Cost:
    """`max_pool2d` and its backward pass: elements of `size` bytes and, of each output, its place in 64 bits."""
    return sum([elementwise(machine, size * (inputs + outputs) + 8 * outputs)] * 2, Cost())


def standardisation(network: Network, machine: Machine) -> Cost:
    """Of all layers' weights, forward and backward."""
    weights = [torch.empty(shape, device="meta") for shape in network.weights]
    gains = [weight.new_empty(weight.shape[0]) for weight in weights]
    first, rounded, stats = standardise.forward(weights, gains, torch.bfloat16, 0.0)
    second, *_ = standardise.backward(rounded, weights, gains, stats)
    return elementwise_launches(machine, first + second)


def row(part: Part) -> bench.Row:
    """One line of the table; empty where there are no products."""
    cost = part.cost
    return {
        "layer": part.layer,
        "pass": part.pass_,
        "provider": part.provider,
        "launches": cost.launches,
        "programs": cost.programs,
        "waves": cost.waves,
        "executed_gflop": round(cost.executed / 1e9, 3) if cost.executed else "",
        "dense_gflop": round(cost.dense / 1e9, 3) if cost.dense else "",
        "mib": round(cost.moved / 2**20, 3),
        "model_us": round(cost.us, 2),
        "cache_us": round(cost.cache_us, 2) if cost.cache_us else "",
        "limit": cost.limit,
    }


def totals(parts: list[Part]) -> dict[str, bench.Row]:
    """Of a step, by provider."""
    ann_us = sum(part.cost.us for part in parts if part.provider == ANN)
    found = {}
    for provider in PROVIDERS:
        own = [part for part in parts if part.provider == provider]
        cost = sum((part.cost for part in own), Cost())
        bias_us = sum(part.cost.us for part in own if part.pass_ == "bias_gradient")
        found[provider] = {
            "executed_tflop": round(cost.executed / 1e12, 4),
            "dense_tflop": round(cost.dense / 1e12, 4),
            "launches": cost.launches,
            "gib": round(cost.moved / 2**30, 3),
            "model_us": round(cost.us, 1),
            "ratio_to_ann": round(cost.us / ann_us, 3),
            "bias_gradient_share": round(bias_us / cost.us, 4),
            "model_us_with_cache": round(sum(max(part.cost.us, part.cost.cache_us) for part in own), 1),
        }
    return found


def few_programs(parts: list[Part], enough: int = 128) -> list[Part]:
    """Our products with fewer programs than processors need, where the layer has that much work.

    It has if blocks of 64×64 would give as many: results, or for a weight's gradient its reduction, can be cut so far.
    """
    own = [part for part in parts if part.provider == OURS and 0 < part.cost.executed]
    work = enough * 2 * 64 * 64 * 256
    return [part for part in own if part.cost.programs < enough and part.cost.executed >= work]


def show(parts: list[Part], found: dict[str, bench.Row], note: str) -> None:
    """Ours layer by layer beside the others' times, then the totals."""
    headings = "layer|pass|launches|programs|waves|GFLOP|dense|MiB|µs|limit|cache µs|stacked µs|ANN µs".split("|")
    shown = ("launches", "programs", "waves", "executed_gflop", "dense_gflop", "mib", "model_us", "limit", "cache_us")
    others = {(part.layer, part.pass_, part.provider): part.cost.us for part in parts}
    lines = []
    for part in parts:
        if part.provider == OURS:
            rivals = [others.get((part.layer, part.pass_, rival)) for rival in (STACKED, ANN)]
            rivals = ["" if us is None else f"{us:.2f}" for us in rivals]
            lines.append((part.layer, part.pass_, *(row(part)[key] for key in shown), *rivals))
    title = f"MODEL, not measured: {note}"
    bench.print_table(headings, lines, title=title, left=("pass", "limit"), width=140, gap=2)
    for provider, values in found.items():
        print(f"{provider}: " + ", ".join(f"{key} {value}" for key, value in values.items()))
    for part in few_programs(parts):
        print(f"few programs: {part.layer} {part.pass_}, {part.cost.programs}")
