import pytest
import torch
import torch.nn.functional as F

from helpers import SMALL, golden, small_tokenizer, under
from torchbeats import NormEMAVectorQuantizer, Tokenizers, TokenizersConfig
from torchbeats.tokenizers.codebook import spherical_kmeans


def test_labels_equal_the_reference():
    about, numbers = golden("tokenizer")
    model = Tokenizers(TokenizersConfig(about["cfg"]))
    model.load_state_dict(under(numbers, "model"))
    assert torch.equal(model.extract_labels(numbers["wav"]), numbers["labels"])
    tokens = model.encode(numbers["wav"])
    assert torch.equal(tokens.labels.flatten(), numbers["labels"])
    assert tokens.labels.shape == (3, 7, 8)


def test_labels_of_a_clip_do_not_depend_on_the_batch():
    model = small_tokenizer()
    wav = torch.randn(2, 16_000)
    tokens = model.encode(wav, torch.tensor([16_000, 6000]))
    assert tokens.step_counts.tolist() == [6, 2]
    assert torch.equal(tokens.labels[1, :2], model.encode(wav[1:, :6000]).labels[0])
    assert (tokens.labels[1, 2:] == -1).all()
    assert tokens.step_times[-1].tolist() == pytest.approx([0.8, 0.96])
    mask = torch.arange(16_000) >= torch.tensor([[16_000], [6000]])
    assert torch.equal(model.extract_labels(wav, mask).view(2, 6, 8)[1, :2], tokens.labels[1, :2])


def quantizer(numbers):
    module = NormEMAVectorQuantizer(32, 8, beta=1.0)
    module.load_state_dict(under(numbers, "before"))
    return module


def test_training_step_equals_the_reference():
    numbers = golden("quantizer_step")[1]
    module, z = quantizer(numbers), numbers["z"].clone().requires_grad_()
    z_q, loss, indices = module(z)
    torch.testing.assert_close(z_q, numbers["z_q"], atol=1e-6, rtol=0)
    torch.testing.assert_close(loss.detach(), numbers["loss"][0], atol=1e-6, rtol=0)
    assert torch.equal(indices, numbers["indices"])
    (loss + z_q.square().sum()).backward()  # what the reference gradient was taken of
    torch.testing.assert_close(z.grad, numbers["z_grad"], atol=1e-6, rtol=0)
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, numbers[f"after.{name}"], atol=1e-6, rtol=0)


def test_evaluation_changes_no_state():
    module = quantizer(golden("quantizer_step")[1]).eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module(torch.randn(4, 50, 8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_codes_are_no_parameters():
    assert list(NormEMAVectorQuantizer(32, 8, beta=1.0).parameters()) == []


def test_kmeans_start_finds_clusters():
    torch.manual_seed(0)
    centres = F.normalize(torch.eye(8), dim=-1)
    z = F.normalize(centres.repeat(50, 1) + 0.05 * torch.randn(400, 8), dim=-1)
    module = NormEMAVectorQuantizer(8, 8, beta=1.0, kmeans_init=True)
    assert not module.embedding.initted
    module(z)
    assert module.embedding.initted
    loss = module.eval()(z)[1]
    assert loss < NormEMAVectorQuantizer(8, 8, beta=1.0).eval()(z)[1] / 2  # than random codes


def test_kmeans_with_fewer_vectors_than_clusters():
    means, sizes = spherical_kmeans(F.normalize(torch.randn(5, 4), dim=-1), 16)
    assert means.isfinite().all()
    assert sizes.sum() == 5


def test_codebook_from_a_file(tmp_path):
    codes = torch.randn(16, 4)
    torch.save(codes, tmp_path / "codes.pt")
    module = NormEMAVectorQuantizer(16, 4, beta=1.0, kmeans_init=True, codebook_init_path=tmp_path / "codes.pt")
    torch.testing.assert_close(module.embedding.weight, F.normalize(codes, dim=-1))
    with pytest.raises(ValueError, match=r"\(8, 4\)"):
        NormEMAVectorQuantizer(8, 4, beta=1.0, codebook_init_path=tmp_path / "codes.pt")


def test_gradient_goes_straight_through():
    module = NormEMAVectorQuantizer(16, 4, beta=0.0).eval()
    z = torch.randn(10, 4, requires_grad=True)
    weight = torch.randn(10, 4)
    (module(z)[0] * weight).sum().backward()
    unit = z.detach().clone().requires_grad_()
    (F.normalize(unit, dim=-1) * weight).sum().backward()
    torch.testing.assert_close(z.grad, unit.grad)


def test_code_usage_can_be_left_out():
    assert "cluster_size" not in NormEMAVectorQuantizer(16, 4, beta=1.0, statistic_code_usage=False).state_dict()


def test_a_tokenizer_without_codes_says_so():
    with pytest.raises(ValueError, match="no codes yet"):
        Tokenizers(TokenizersConfig(SMALL)).extract_labels(torch.randn(1, 8000))
