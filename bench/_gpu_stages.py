"""The stages of `gpu.py`, most important first: what is tried, and the statement that it decides."""

from _gpu_driver import Stage

WORK = "bench/_gpu_work.py"
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default")
LARGE = "tests/kernels/triton/test_large.py"
TRAINING = ("pydantic", "tyro", "datasets")  # what recipes need beside what kernels need


def pytest(name: str, statement: str, *arguments: str, parallel: bool = True, **options) -> Stage:
    """Tests; in parallel where pytest-xdist is there, as kernels compile on the CPU."""
    command = (WORK, "pytest", *arguments) if parallel else (*PYTEST, *arguments)
    return Stage(name, statement, command, packages=("pytest", *options.pop("packages", ())), **options)


def sanitised(tool: str, statement: str) -> Stage:
    """The smoke's smallest cases under one of compute-sanitizer's tools, once each."""
    before = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--target-processes", "all")
    variables = (("TTFS_REPEATS", "2"), ("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"))
    return pytest(
        tool,
        statement,
        LARGE,
        "-k",
        "sanitised",
        parallel=False,
        programs=("compute-sanitizer",),
        before=before,
        variables=variables,
    )


STAGES = (
    Stage("versions", "Triton kernels can run here", (WORK, "versions", "{output}"), limit_s=60),
    pytest(
        "smoke",
        "default blocks in bfloat16 are exact on large layers, in every one of many launches",
        LARGE,
        "-x",
        limit_s=300,
        variables=(("TTFS_REPEATS", "50"),),
    ),
    Stage(
        "first_step", "a training step of VGG16 runs on the GPU and waits for it nowhere", (WORK, "step"), limit_s=200
    ),
    sanitised("memcheck", "kernels touch no memory that is not theirs"),
    sanitised("racecheck", "kernels have no race in shared memory"),
    pytest("test_kernels", "all tests of the kernels pass", "tests/kernels", packages=("hypothesis",), calls=2),
    pytest("test_networks", "all tests of layers and networks pass", "tests/nn", packages=("hypothesis",)),
    Stage("compile", "all candidates in bfloat16 can be compiled", (WORK, "compile"), calls=3),
    Stage("tune", "the default blocks in bfloat16 are right, and a table is written", (WORK, "tune", "bf16"), calls=4),
    Stage("train_step", "training steps agree with their twins, and are timed", (WORK, "train_step", "{output}")),
    Stage("epoch", "VGG16 trains for an epoch in bfloat16, faster than the composition", (WORK, "epoch", "{output}")),
    Stage(
        "graph",
        "steps by a CUDA graph reach the losses of plain ones, and leave the device idle under 3 %",
        (WORK, "graph", "{output}"),
        TRAINING,
    ),
    Stage("layers", "every contender agrees with float64, layer by layer", (WORK, "layers", "{output}"), calls=1),
    Stage("model", "the plan's order of layers is the measured one", (WORK, "model", "{output}"), limit_s=60),
    pytest("stress", "a thousand launches of each large layer agree bit for bit", LARGE),
    Stage(
        "causal_set", "closed form and causal-set search agree", ("bench/causal_set.py", "--device", "cuda"), ("tyro",)
    ),
    Stage(
        "recipe",
        "a recipe trains on the given data",
        (
            *("recipes/train_vgg16_cifar10.py", "--data-dir", "{data}", "--epochs", "1", "--mixed-precision", "bf16"),
            *("--batch-size", "256", "--output-dir", "{output}/recipe"),
        ),
        TRAINING,
    ),
    pytest(
        "test_rest", "all other tests pass", "tests", "--ignore=tests/kernels", "--ignore=tests/nn", packages=TRAINING
    ),
    Stage("tune_rest", "default blocks in fp16 and fp32 are right", (WORK, "tune", "fp16", "fp32"), calls=6),
    Stage(
        "peers",
        "peers are timed beside ours",
        ("bench/peers.py", "--device", "cuda", "--batch-size", "128"),
        ("tyro", "spikingjelly", "snntorch"),
    ),
)
