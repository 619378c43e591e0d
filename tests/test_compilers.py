"""Half precision, torch.compile and torch.export."""

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F

from helpers import small_model
from torchbeats import BEATs, BEATsConfig
from torchbeats.config import SIZES

HALVES = [torch.bfloat16, torch.float16]
LENS = torch.tensor([1.0, 0.5, 0.2])


@pytest.fixture(scope="module")
def base():
    """The published architecture at full depth and width."""
    torch.manual_seed(0)
    return BEATs(BEATsConfig(SIZES["base"]))


@pytest.mark.parametrize("amplitude", [1, 8])
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_agrees_with_float32(base, dtype, amplitude):
    torch.manual_seed(0)
    wav, lengths = 0.1 * amplitude * torch.randn(2, 8000), torch.tensor([8000, 3500])
    half = copy.deepcopy(base).to(dtype)
    for given in (wav, wav.to(dtype)):
        expected, x = base.encode(wav, lengths), half.encode(given, lengths)
        assert x.x.dtype == dtype
        assert not x.x.isnan().any()
        likeness = F.cosine_similarity(x.x.float(), expected.x, dim=-1)[~x.padding_mask]
        assert likeness.min() >= 0.999


def test_float16_gradients_are_finite(base):
    model = copy.deepcopy(base).half().unfreeze()
    model.encode(0.8 * torch.randn(1, 8000)).x.float().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_autocast(base):
    wav = 0.1 * torch.randn(1, 8000)
    with torch.autocast("cpu", torch.bfloat16):
        x = base(wav)[0]
    assert F.cosine_similarity(x.float(), base(wav)[0], dim=-1).min() >= 0.999


def batches(fewest):
    """Other numbers of clips and samples than the model was compiled with, from a single step up."""
    torch.manual_seed(1)
    yield 0.1 * torch.randn(5, 24_000), torch.tensor([1.0, 0.9, 0.5, 0.2, 1.0])
    yield 0.1 * torch.randn(fewest, 2800), torch.tensor([1.0, 1.0])[:fewest]


def check(model, compiled, with_lens, fewest=1):
    for wav, lens in batches(fewest):
        arguments = (wav, lens) if with_lens else (wav,)
        expected, results = model(*arguments), compiled(*arguments)
        assert len(results) == len(expected)
        mask = expected[2] if len(expected) == 3 else None
        for result, wanted in zip(results, expected, strict=True):
            if mask is not None and result.dim() == 3:
                result, wanted = result[~mask], wanted[~mask]
            torch.testing.assert_close(result, wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize(  # every pair of values
    ("strict", "labels", "with_lens"),
    [(False, False, False), (False, True, True), (True, False, True), (True, True, False)],
)
def test_export_with_dynamic_batch_and_time(labels, with_lens, strict):
    model = small_model(finetuned_model=labels, predictor_class=7)
    batch, time = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("time", min=2800, max=1_600_000)
    arguments = (0.1 * torch.randn(3, 16_000), LENS)[: 1 + with_lens]
    shapes = ({0: batch, 1: time}, {0: batch})[: 1 + with_lens]
    program = torch.export.export(model, arguments, dynamic_shapes=shapes, strict=strict)
    check(model, program.module(), with_lens)


def test_export_of_half_precision():
    model = small_model().to(torch.bfloat16)
    batch, time = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("time", min=2800, max=1_600_000)
    program = torch.export.export(model, (0.1 * torch.randn(3, 16_000),), dynamic_shapes=({0: batch, 1: time},))
    wav = 0.1 * torch.randn(2, 9000)
    assert F.cosine_similarity(program.module()(wav)[0].float(), model(wav)[0].float(), dim=-1).min() > 0.999


def test_export_of_a_single_clip_with_dynamic_time():
    model = small_model()
    dynamic = torch.export.Dim.DYNAMIC  # with named bounds, torch 2.13 cannot prove that 1 % T is not 0
    program = torch.export.export(model, (0.1 * torch.randn(1, 16_000),), dynamic_shapes=({1: dynamic},))
    for samples in (2800, 9000, 40_000):
        wav = 0.1 * torch.randn(1, samples)
        torch.testing.assert_close(program.module()(wav)[0], model(wav)[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("with_lens", [False, True])
def test_compile_in_one_graph(with_lens):
    model = small_model(encoder_layers=1, finetuned_model=True, predictor_class=7)
    torch.compiler.reset()
    # "aot_eager" traces everything that the default backend would, and spares its minute in the C++ compiler.
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    check(model, compiled, with_lens, fewest=1 if with_lens else 2)  # a single clip is another graph


@pytest.mark.skipif(not shutil.which("g++"), reason="the default backend needs a C++ compiler")
def test_compile_with_the_default_backend():
    model = small_model(encoder_layers=1)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True)
    wav = 0.1 * torch.randn(2, 8000)
    torch.testing.assert_close(compiled(wav)[0], model(wav)[0], atol=2e-5, rtol=0)


def test_compiled_training_step():
    model = small_model(dropout=0.0, attention_dropout=0.0).unfreeze()
    torch.compiler.reset()
    wav = 0.1 * torch.randn(2, 8000)
    gradients = []
    for network in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        network(wav)[0].square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=1e-3)


def test_values_are_checked_in_eager_mode_only():
    model = small_model()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    compiled(torch.full((1, 4000), torch.nan))
    with pytest.raises(ValueError, match="NaN"):
        model(torch.full((1, 4000), torch.nan))
