"""What a goal inside the jump of a channel's background asks of training: the jump, and an end beside it."""

from itertools import pairwise

import torch
from accelerate import Accelerator

from ttfs_triton.hardware import count
from ttfs_triton.nn import NetworkConfig, Neuron, TTFSNetwork, network_graph
from ttfs_triton.train.background import Background
from ttfs_triton.train.dial import Dial
from ttfs_triton.train.metering import MeteredNetwork
from ttfs_triton.train.target import Wanted, make_target

STEPS = 160
RATE = 4e-4


def drawn_on_nothing():
    """A network, and images that are empty but for a square in which strokes differ."""
    torch.manual_seed(0)
    neuron = Neuron(0.25, surrogate_width=0.5)
    network = TTFSNetwork(NetworkConfig("6C3-P2-8", image_size=(16, 16), neuron=neuron, weight_standardisation=False))
    images = torch.zeros(16, 1, 16, 16)
    images[:, :, 5:11, 5:11] = torch.rand(16, 1, 6, 6) * (torch.rand(16, 1, 6, 6) < 0.7)
    graph = network_graph(network, images.shape[1:])
    potential = graph.stages[1].weighted.bias
    assert potential is not None
    with torch.no_grad():
        potential.copy_(torch.tensor([0.05, -0.001, -0.004, -0.008, -0.1, -0.1]))
    return network, graph, images, potential


def activity(network, images):
    return count(network, [images]).sparsity


def steered(goal, held):
    """Activity before each step of a network that nothing but the dial trains."""
    network, graph, images, _ = drawn_on_nothing()
    target = make_target(Wanted("sparsity", {None: goal}), network, images, steps=16)
    model = MeteredNetwork(network, graph, target)
    dial = Dial(target.goals, target.floors, Accelerator(cpu=True), STEPS, ema_decay=0.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    background = Background(graph, images)
    background.attach(optimizer)
    reached = []
    with model.watching():
        for step in range(STEPS):
            rate = 1 - step / STEPS
            optimizer.param_groups[0]["lr"] = RATE * rate
            background.hold(held and step >= dial.approach)
            dial.prepare(step, rate)
            optimizer.zero_grad()
            costs = model(images)[1]
            reached.append(costs.item())
            dial.penalty(costs, 1).backward()
            dial.update()
            optimizer.step()
    return reached


def test_channel_fires_all_of_its_background_at_once():
    network, graph, images, potential = drawn_on_nothing()
    before = activity(network, images)
    with torch.no_grad():
        potential[1] += 0.008
    assert activity(network, images) > before + 0.08
    assert Background(graph, images).layers == ["conv1"]


def test_multiplier_hops_over_a_goal_inside_the_jump_unless_channels_are_held():
    def largest_jump(reached):
        settled = reached[STEPS // 3 :]
        return max(abs(after / before - 1) for before, after in pairwise(settled))

    free, held = steered(0.3, held=False), steered(0.3, held=True)
    assert largest_jump(free) > 0.2
    assert largest_jump(held) < 0.02
    assert abs(held[-1] - 0.3) < abs(free[-1] - 0.3)


def test_held_channel_stays_silent_and_others_may_cease():
    _, graph, images, potential = drawn_on_nothing()
    optimizer = torch.optim.SGD([potential], lr=1.0)
    background = Background(graph, images)
    background.attach(optimizer)
    before = potential.detach().clone()

    def step(by):
        potential.grad = torch.full_like(potential, -by)
        optimizer.step()
        return potential.detach().clone()

    background.hold(True)
    assert torch.equal(step(0.01), torch.where(before > 0, before + 0.01, (before + 0.01).clamp_max(0)))
    assert (step(-0.2) < 0).all()  # the one that fired, too
    assert (step(0.5) == 0).all()
    background.hold(False)
    assert (step(0.5) > 0).all()
