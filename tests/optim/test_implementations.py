"""Rules written for lists, for one tensor and compiled are one; borders of buckets do not show; scratch is bounded."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlhf.optim import AdaBelief, AuON, Frugal, elementwise
from rlhf.optim.elementwise import resolve
from rlhf.optim.rounding import join8, join16

SINGLE, DOUBLE, HALF = torch.float32, torch.float64, torch.bfloat16
LR = 1e-2
SHAPES = [(7, 5), (70, 61), (66, 64), (20,)]
COMPILED = [(7, 5), (131, 130), (160, 129), (20,)]
"""Small ones are never compiled; the others have no common length."""
ADABELIEF = {
    "adabelief": {},
    "adabelief, amsgrad": {"amsgrad": True},
    "adabelief, coupled decay": {"weight_decouple": False, "eps": 1e-8},
    "adabelief, rectified": {"rectify": True, "betas": (0.9, 0.5)},
    "adabelief, rectified at the seventh step": {"rectify": True},
    "adabelief, no step before the seventh": {"rectify": True, "degenerated_to_sgd": False},
    "adabelief, added eps": {"eps_mode": "additive", "eps": 1e-8},
}
FRUGAL = {
    "adamw": {"role": "full"},
    "lion": {"role": "full", "state_full_rule": "lion"},
    "sign": {"density": 0.4, "update_gap": 2},
    "sign, dead zone": {"density": 0.4, "update_gap": 2, "sign_deadzone": 0.5},
    "sgd": {"density": 0.4, "update_gap": 2, "state_free_rule": "sgd"},
    "decay alone": {"density": 0.4, "update_gap": 2, "state_free_rule": "none"},
    "columns": {"selector": "columns", "update_gap": 2},
    "projected columns": {"selector": "columns", "state_mode": "project", "update_gap": 2},
    "chunks": {"selector": "chunk", "update_gap": 2},
}
RULES = ADABELIEF | FRUGAL
PRECISIONS = {
    "float64": (DOUBLE, {}),
    "float32": (SINGLE, {}),
    "bfloat16 state": (SINGLE, {"state_dtype": "bfloat16"}),
    "8-bit state": (SINGLE, {"state_dtype": "8bit"}),
    "bfloat16": (HALF, {}),
    "sr": (HALF, {"param_precision": "sr"}),
    "split16": (HALF, {"param_precision": "split16"}),
    "split8": (HALF, {"param_precision": "split8", "state_dtype": "8bit"}),
}


def tensors(dtype, seed, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def optimizer_of(rule, parameters, **settings):
    kind = AdaBelief if rule in ADABELIEF else Frugal
    settings = {"lr": LR, "weight_decay": 0.1, **RULES[rule], **settings}
    if settings.get("role", "split") == "split" and kind is Frugal:
        # vectors are never split
        vectors = {"params": [p for p in parameters if p.ndim < 2], "role": "full"}
        return Frugal([{"params": [p for p in parameters if p.ndim >= 2], "role": "split"}, vectors], **settings)
    return kind(parameters, **settings)


def trained(rule, precision, steps=3, shapes=SHAPES, **settings):
    """Weights after some steps."""
    dtype, of_precision = PRECISIONS[precision]
    parameters = [torch.nn.Parameter(tensor) for tensor in tensors(dtype, 0, shapes)]
    optimizer = optimizer_of(rule, parameters, **of_precision, **settings)
    for step in range(steps):
        for parameter, grad in zip(parameters, tensors(dtype, 1 + step, shapes), strict=True):
            parameter.grad = grad
        optimizer.step()
    return [whole_weight(parameter, optimizer.state[parameter]) for parameter in parameters]


def whole_weight(parameter, state):
    """With the bits that are kept beside it."""
    residual = state.get("param_residual")
    if residual is None:
        return parameter.detach()
    join = join16 if residual.dtype == torch.int16 else join8
    return join(parameter.detach(), residual)


ROUNDED = {"bfloat16 state", "8-bit state", "bfloat16", "sr", "split8"}


def assert_agree(rule, precision, one, other, tolerance):
    for first, second in zip(one, other, strict=True):
        assert first.dtype == second.dtype and first.shape == second.shape
        difference = (first.double() - second.double()).abs()
        # steps are as large as the learning rate, whatever is left of the weight
        excess = difference / (tolerance * (first.double().abs() + 3 * LR))
        if precision in ROUNDED:
            # now and then a difference in the last digit rounds a value the other way
            other_ways = int((excess > 1).sum())
            assert other_ways <= 1 + 1e-3 * excess.numel(), f"{rule}, {precision}: {other_ways} of {excess.numel()}"
        else:
            assert float(excess.max()) <= 1, f"{rule}, {precision}: {float(excess.max())}"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rule", RULES)
def test_lists_agree_with_single_tensors(rule, precision):
    tolerance = 1e-14 if precision == "float64" else 5e-7
    loop, foreach = (trained(rule, precision, impl=impl) for impl in ("loop", "foreach"))
    assert_agree(rule, precision, loop, foreach, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rule", RULES)
def test_compiled_kernels_agree_with_lists(rule, precision):
    tolerance = 1e-14 if precision == "float64" else 1e-6
    steps = 8 if "seventh" in rule else 3
    compiled, foreach = (trained(rule, precision, steps, COMPILED, impl=impl) for impl in ("compiled", "foreach"))
    assert_agree(rule, precision, compiled, foreach, tolerance)


@pytest.mark.slow
def test_kernels_that_take_several_tensors_agree_with_lists():
    shapes = [(130, 130)] * 19
    compiled, foreach = (trained("adamw", "float32", shapes=shapes, impl=impl) for impl in ("compiled", "foreach"))
    assert_agree("adamw", "float32", compiled, foreach, 1e-6)


def set_bucket(monkeypatch, elements):
    for name in ("BUCKET_ONE_THREAD", "BUCKET_CPU"):
        monkeypatch.setattr(elementwise, name, elements)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rule", ["adabelief", "adamw", "sign", "columns", "projected columns", "chunks"])
@pytest.mark.parametrize("bucket", [1 << 10, 1 << 12])
def test_borders_of_buckets_change_no_bit(rule, precision, bucket, monkeypatch):
    whole = trained(rule, precision, impl="foreach")
    set_bucket(monkeypatch, bucket)
    for one, other in zip(whole, trained(rule, precision, impl="foreach"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("settings", [{}, {"brake": "exact"}, {"mode": "repository"}])
def test_borders_of_buckets_change_a_matrix_norm_by_rounding_alone(settings, monkeypatch):
    def weights():
        parameters = [torch.nn.Parameter(tensor) for tensor in tensors(SINGLE, 0, [(131, 130), (60, 70)])]
        optimizer = AuON(parameters, lr=0.1, role="matrix", **settings)
        for parameter, grad in zip(parameters, tensors(SINGLE, 1, [(131, 130), (60, 70)]), strict=True):
            parameter.grad = grad
        optimizer.step()
        return parameters

    whole = weights()
    set_bucket(monkeypatch, 1 << 10)
    for one, other in zip(whole, weights(), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-7, atol=1e-8)


def test_what_auto_stands_for():
    cpu = torch.device("cpu")
    assert resolve("auto", 1000, cpu) == "foreach"
    assert resolve("auto", 30_000_000, cpu) == ("compiled" if elementwise.can_compile("cpu") else "foreach")
    assert resolve("loop", 30_000_000, cpu) == "loop"


class Scratch(TorchDispatchMode):
    """Counts the bytes of storages that operations make, while they live."""

    def __init__(self, known):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.live, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


MODEL = [(2048, 3072)] * 4 + [(1024, 1024)] * 24
"""50 million elements; the largest tensor has 24 MiB in float32."""
STORED = {"param_precision": "split16", "state_dtype": "8bit"}
SPLITS = [
    (SINGLE, {"selector": "block_budget"}),
    (SINGLE, {"selector": "chunk"}),
    (SINGLE, {"selector": "columns"}),
    (SINGLE, {"selector": "columns", "state_mode": "project"}),
    (SINGLE, {"selector": "randk"}),
    (HALF, {"selector": "chunk"} | STORED),
    (HALF, {"selector": "columns"} | STORED),
    (HALF, {"selector": "rows"} | STORED),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype", "settings"),
    [
        (AdaBelief, SINGLE, {}),
        (AdaBelief, SINGLE, {"max_update_rms": 1.0}),
        (AdaBelief, HALF, {"max_update_rms": 1.0} | STORED),
        (Frugal, SINGLE, {"role": "full"}),
        (Frugal, HALF, {"role": "full"} | STORED),
        *((Frugal, dtype, {"role": "split"} | settings) for dtype, settings in SPLITS),
        (AuON, SINGLE, {"role": "matrix"}),
        (AuON, SINGLE, {"role": "matrix", "brake": "exact"}),
        (AuON, SINGLE, {"role": "matrix", "mode": "repository"}),
        (AuON, HALF, {"role": "matrix"} | STORED),
    ],
)
def test_scratch_is_a_bucket_and_at_most_a_tensor(kind, dtype, settings):
    peak = peak_scratch(kind, MODEL, dtype, settings)
    print(f"{kind.__name__} {dtype} {settings}: {peak / 2**20:.1f} MiB")
    assert peak <= (64 << 20) + 4 * 2048 * 3072


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype", "settings"),
    [
        (Frugal, SINGLE, {"role": "split", "selector": "random"}),
        (Frugal, HALF, {"role": "split", "selector": "random"} | STORED),
        (AuON, SINGLE, {"role": "matrix", "ns_steps": 1}),
        (AuON, HALF, {"role": "matrix", "ns_steps": 1} | STORED),
    ],
)
def test_scratch_of_matrix_products_is_some_of_one_matrix(kind, dtype, settings):
    peak = peak_scratch(kind, MODEL[3:8], dtype, settings)
    print(f"{kind.__name__} {dtype} {settings}: {peak / 2**20:.1f} MiB")
    assert peak <= 7 * 4 * 2048 * 3072


def peak_scratch(kind, shapes, dtype, settings):
    """Bytes that a step holds at once beside parameters, gradients and state."""
    noise = torch.randn(2048 * 3072, generator=torch.Generator().manual_seed(0)).to(dtype)
    parameters = [torch.nn.Parameter(noise[: torch.Size(shape).numel()].view(shape).clone()) for shape in shapes]
    for parameter in parameters:
        parameter.grad = noise.flip(0)[: parameter.numel()].view(parameter.shape).clone()
    optimizer = kind(parameters, impl="foreach", **settings)
    # the first step makes the state
    optimizer.step()
    states = [each for state in optimizer.state.values() for each in state.values()]
    with Scratch([*parameters, *(parameter.grad for parameter in parameters), *states]) as scratch:
        optimizer.step()
    return scratch.peak
