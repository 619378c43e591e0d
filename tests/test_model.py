import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import torchbeats
from helpers import SMALL, golden, noise, small_model, under
from torchbeats import BEATs, BEATsConfig, Tokenizers, TokenizersConfig
from torchbeats.backbone import Encoded

VARIANTS = ["base", "finetuned", "glu", "plain_relu", "prenorm", "same_width", "ungated_bias"]
# From the reference's features on, the tolerance is that of the reference numbers. From the waveform on it is wider:
# a float32 FFT rounds otherwise on another processor, by up to 5e-5 in these outputs.
ENCODED, FROM_WAVEFORM = 2e-5, 1e-4


def reference(variant, **kwargs):
    about, tensors = golden(f"beats_{variant}")
    model = BEATs(BEATsConfig(about["cfg"]), **kwargs)
    model.load_state_dict(under(tensors, "model"))
    return model, tensors


def output(model, *args, **kwargs):
    """Class probabilities of a model with labels, else features."""
    return model(*args, **kwargs)[0 if model.predictor is None else 1]


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_reference(variant):
    model, numbers = reference(variant)
    torch.testing.assert_close(model.preprocess(numbers["wav"]), numbers["fbank"], atol=1e-4, rtol=0)
    torch.testing.assert_close(output(model, numbers["wav"]), numbers["output"], atol=FROM_WAVEFORM, rtol=0)
    embedded = model.embed_patches(numbers["fbank"])
    x = model.encoder(embedded)[0]
    expected = numbers["output"] if model.predictor is None else numbers["encoder.hiddens"][-1]
    torch.testing.assert_close(x, expected, atol=ENCODED, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_gives_what_each_clip_gives_alone(variant):
    model, numbers = reference(variant)
    batch = output(model, numbers["wav"], numbers["wav_lens"])
    for row in range(3):
        alone = numbers[f"output.alone.{row}"][0]
        ours = batch[row, : len(alone)] if alone.dim() == 2 else batch[row]
        torch.testing.assert_close(ours, alone, atol=FROM_WAVEFORM, rtol=0)


def test_training_step_equals_the_reference():
    about, numbers = golden("gradients")
    model = BEATs(BEATsConfig(about["cfg"]), freeze=False)
    model.load_state_dict(under(numbers, "model"))
    _, probabilities, _ = model(numbers["wav"])
    torch.testing.assert_close(probabilities, numbers["probs"], atol=2e-5, rtol=0)
    loss = F.binary_cross_entropy(probabilities, numbers["target"])
    torch.testing.assert_close(loss.detach(), numbers["loss"][0], atol=1e-5, rtol=0)
    loss.backward()
    gradients = under(numbers, "grad")
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        # A bias on the keys shifts every score of a query alike: its gradient is zero but for rounding.
        scale = largest if name.endswith("k_proj.bias") else gradients[name].abs().max()
        assert (parameter.grad - gradients[name]).abs().max() <= 2e-4 * scale, name


MODEL = small_model()


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(2_800, 40_000), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_embeddings_do_not_depend_on_the_batch(lengths, seed):
    clips = [torch.from_numpy(noise(1, rate=n, seed=seed + i)) for i, n in enumerate(lengths)]
    wav = torch.full((len(clips), max(lengths)), torch.nan)  # nothing behind a clip may be looked at
    for row, clip in zip(wav, clips, strict=True):
        row[: len(clip)] = clip
    with torch.no_grad():
        batch = MODEL.encode(wav, torch.tensor(lengths))
        for row, clip in enumerate(clips):
            alone = MODEL.encode(clip[None])
            own = batch.x[row, : batch.patch_counts[row]]
            assert own.shape == alone.x[0].shape
            torch.testing.assert_close(own, alone.x[0], atol=1e-4, rtol=0)
            torch.testing.assert_close(batch.pooled()[row], alone.pooled()[0], atol=1e-4, rtol=0)
            torch.testing.assert_close(batch.pooled_bands()[row], alone.pooled_bands()[0], atol=1e-4, rtol=0)


def test_gradients_do_not_depend_on_the_batch():
    model = small_model().unfreeze().eval()
    wav = torch.from_numpy(noise(1))[None].repeat(2, 1)

    def gradient(*args):
        model.zero_grad()
        model.encode(*args).pooled()[0].sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    for batched, alone in zip(gradient(wav, torch.tensor([9000, 16000])), gradient(wav[:1, :9000]), strict=True):
        torch.testing.assert_close(batched, alone, atol=2e-4 * float(alone.abs().max()) + 1e-6, rtol=0)


# --- what SpeechBrain's release documents and does not do -------------------------------------------------------------


def test_documented_example():
    wav, wav_lens = torch.randn(4, 10_000), torch.tensor([1.0, 0.5, 0.75, 1.0])
    assert BEATs().extract_features(wav, wav_lens)[0].shape == (4, 24, 768)


def test_no_lengths_at_all_works():
    (x,) = small_model()(torch.randn(2, 16_000))
    assert x.shape == (2, 48, 48)


def test_frozen_parameters_ask_for_no_gradient_but_the_input_gets_one():
    model = small_model()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    wav = torch.randn(1, 8000).requires_grad_()
    model(wav)[0].sum().backward()
    assert wav.grad.abs().max() > 0


def test_frozen_model_stays_in_evaluation_mode_until_it_is_unfrozen():
    model = small_model()
    parent = torch.nn.Sequential(model)
    parent.train()
    model.train()
    assert not any(module.training for module in model.modules())
    model.unfreeze()
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    parent.eval()
    assert not model.training


def test_not_frozen_is_in_training_mode():
    model = BEATs(BEATsConfig(SMALL), freeze=False)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_all_hiddens_are_layers_first_then_batch():
    model, numbers = reference("base", output_all_hiddens=True)
    hiddens = model(numbers["wav"])[0]
    assert hiddens.shape == (4, 3, 56, 48)
    torch.testing.assert_close(hiddens, numbers["encoder.hiddens"], atol=FROM_WAVEFORM, rtol=0)
    default = BEATs(output_all_hiddens=True)
    assert default(torch.randn(2, 8000))[0].shape == (13, 2, 24, 768)


def test_missing_checkpoint_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        BEATs("nowhere.pt")


# --- interface --------------------------------------------------------------------------------------------------------


def test_label_head_gives_features_probabilities_and_mask():
    model = small_model(finetuned_model=True, predictor_class=7)
    x, probabilities, mask = model(torch.randn(2, 16_000), lengths=torch.tensor([16_000, 6000]))
    assert x.shape == (2, 48, 48)
    assert probabilities.shape == (2, 7)
    assert mask.tolist() == [[False] * 48, [False] * 16 + [True] * 32]
    logits = model.logits(torch.zeros(1, 8000) + 0.1)
    assert logits.shape == (1, 7)


@pytest.mark.parametrize(("problem", "activation"), [("multi_label", torch.sigmoid), ("single_label", torch.softmax)])
def test_problem_type_decides_between_sigmoid_and_softmax(problem, activation):
    model = small_model(finetuned_model=True, predictor_class=7, problem_type=problem)
    wav = torch.randn(2, 8000)
    expected = activation(model.logits(wav), *([-1] if problem == "single_label" else []))
    torch.testing.assert_close(model(wav)[1], expected)


def test_logits_are_the_mean_over_own_patches():
    model = small_model(finetuned_model=True, predictor_class=7)
    wav, lengths = torch.randn(2, 16_000), torch.tensor([16_000, 6000])
    x = model(wav, lengths=lengths)[0]
    expected = torch.stack([model.predictor(row[:n]).mean(0) for row, n in zip(x, (48, 16), strict=True)])
    torch.testing.assert_close(model.logits(wav, lengths=lengths), expected, atol=1e-5, rtol=0)


def test_a_head_over_bands_knows_which_is_which():
    model = small_model(finetuned_model=True, predictor_class=7, predictor_pool="bands")
    wav, lengths = torch.randn(2, 16_000), torch.tensor([16_000, 6000])
    x = model(wav, lengths=lengths)[0]
    means = [row[:n].unflatten(0, (-1, 8)).mean(0).flatten() for row, n in zip(x, (48, 16), strict=True)]
    expected = model.predictor(torch.stack(means))
    torch.testing.assert_close(model.logits(wav, lengths=lengths), expected, atol=1e-5, rtol=0)


def test_a_head_over_statistics_knows_steady_from_changing():
    model = small_model(finetuned_model=True, predictor_class=7, predictor_pool="statistics")
    wav, lengths = torch.randn(2, 16_000), torch.tensor([16_000, 6000])
    x = model(wav, lengths=lengths)[0]
    by_step = [row[:n].unflatten(0, (-1, 8)) for row, n in zip(x, (48, 16), strict=True)]
    pooled = [torch.cat([row.mean(0).flatten(), row.std(0, unbiased=False).flatten()]) for row in by_step]
    expected = model.predictor(torch.stack(pooled))
    torch.testing.assert_close(model.logits(wav, lengths=lengths), expected, atol=1e-5, rtol=0)


def test_dropout_of_a_head_over_statistics_is_no_deviation():
    """Zeros among the steps of a constant clip would be; the pooled values are what is dropped."""
    model = small_model(finetuned_model=True, predictor_class=7, predictor_pool="statistics", predictor_dropout=0.5)
    model.unfreeze()
    seen = []
    model.predictor.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    x = torch.ones(4, 80, 48)
    model.pooled_logits(Encoded(x, torch.zeros(4, 80, dtype=torch.bool), torch.full((4,), 80)))
    means, deviations = seen[0].chunk(2, dim=1)
    assert set(means.unique().tolist()) == {0.0, 2.0}
    assert deviations.abs().max() == 0


def test_logits_need_a_head():
    with pytest.raises(ValueError, match="no label head"):
        small_model().logits(torch.randn(1, 8000))


def test_fbank_statistics_default_to_the_models_own():
    wav = torch.randn(1, 8000)
    own = small_model(fbank_mean=14.0, fbank_std=5.0)
    published = small_model()
    torch.testing.assert_close(own.preprocess(wav), published.preprocess(wav, 14.0, 5.0))
    torch.testing.assert_close(own.preprocess(wav, 15.0, 6.0), published.preprocess(wav, 15.0, 6.0))
    raw = published.fbank(wav)
    torch.testing.assert_close(published.preprocess(wav), (raw - 15.41663) / (2 * 6.55582))


def test_encoded_pools_steps_and_times():
    model = small_model()
    encoded = model.encode(torch.randn(2, 16_000), torch.tensor([16_000, 6000]))
    assert encoded.patch_counts.tolist() == [48, 16]
    assert encoded.step_counts().tolist() == [6, 2]
    by_hand = encoded.x[1, :16].view(2, 8, 48)
    torch.testing.assert_close(encoded.steps()[1, :2], by_hand.mean(1))
    torch.testing.assert_close(encoded.pooled()[1], by_hand.mean((0, 1)))
    torch.testing.assert_close(encoded.pooled_bands()[1], by_hand.mean(0).flatten())
    times = encoded.step_times()
    assert times.dtype == torch.float64
    np.testing.assert_allclose(times[:2], [[0, 0.16], [0.16, 0.32]])


def test_encode_stops_behind_a_layer():
    model = small_model()
    model.output_all_hiddens = True
    wav = torch.randn(1, 8000)
    hiddens = model(wav)[0]
    for layer in range(3):
        torch.testing.assert_close(model.encode(wav, layer=layer).x, hiddens[layer])
    with pytest.raises(ValueError, match="2 layers"):
        model.encode(wav, layer=3)


@pytest.mark.parametrize("patch_size", [8, 32])
def test_other_patch_sizes(patch_size):
    model = small_model(input_patch_size=patch_size)
    encoded = model.encode(torch.randn(1, 16_000))
    assert encoded.x.shape == (1, 98 // patch_size * (128 // patch_size), 48)
    assert encoded.step_times()[0, 1].item() == pytest.approx(patch_size / 100)


def test_forward_padding_mask_reduces_any_finer_axis():
    model, features = small_model(), torch.zeros(2, 3, 4)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]], dtype=torch.bool)
    # Seven positions for three: the last is dropped, and a group of two is padding when both are.
    assert model.forward_padding_mask(features, mask).tolist() == [[False, False, True], [True, True, False]]
    assert model.forward_padding_mask(features, mask[:, :3]).tolist() == mask[:, :3].tolist()
    with pytest.raises(ValueError, match="fewer than the 3"):
        model.forward_padding_mask(features, mask[:, :2])


def test_short_clips_are_filled_up_and_warned_of():
    model = small_model()
    clip = torch.randn(1, 100)
    with pytest.warns(UserWarning, match="shorter than 2800"):
        (x,) = model(clip)
    torch.testing.assert_close(x, model(F.pad(clip, (0, 2700)))[0])


def test_integer_samples_equal_floating_ones():
    model = small_model()
    pcm = torch.randint(-(2**15), 2**15, (1, 8000), dtype=torch.int16)
    torch.testing.assert_close(model(pcm)[0], model(pcm.float() / 2**15)[0])


def test_the_callers_tensors_stay_as_they_are():
    model = small_model()
    wav, lengths = torch.randn(2, 8000), torch.tensor([8000, 4000])
    kept = wav.clone()
    model.encode(wav, lengths)
    assert torch.equal(wav, kept)
    assert lengths.tolist() == [8000, 4000]


def test_config_is_copied():
    config = BEATsConfig(SMALL)
    model = BEATs(config)
    config.fbank_mean = 0.0
    assert model.cfg.fbank_mean == 15.41663


def test_training_mode_is_random_and_evaluation_is_not():
    model = small_model().unfreeze()
    wav = torch.randn(1, 8000)
    assert not torch.equal(model(wav)[0], model(wav)[0])
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(model(wav)[0], model(wav)[0])


def test_public_names_are_documented():
    for name in torchbeats.__all__:
        assert getattr(torchbeats, name).__doc__, name


def test_preprocess_takes_pcm_and_refuses_what_holds_no_frame():
    model = small_model()
    pcm = torch.randint(-(2**15), 2**15, (1, 4000), dtype=torch.int16)
    torch.testing.assert_close(model.preprocess(pcm), model.preprocess(pcm.float() / 2**15))
    for wrong in (torch.zeros(1, 399), torch.zeros(400)):
        with pytest.raises(ValueError, match="400 samples or more"):
            model.preprocess(wrong)


@pytest.mark.parametrize("call", ["__call__", "forward", "extract_features", "logits"])
def test_a_mask_in_the_place_of_relative_lengths_is_told_its_keyword(call):
    """In the research code the second argument is the mask: here it would be read as lengths."""
    model = small_model(finetuned_model=True, predictor_class=7)
    wav, mask = torch.randn(2, 8000), torch.zeros(2, 8000, dtype=torch.bool)
    for wrong in (mask, mask.long(), mask.float(), mask[:, :7000], mask[:, 0]):
        with pytest.raises(ValueError, match=r"padding_mask=mask"):
            getattr(model, call)(wav, wrong)
    getattr(model, call)(wav, padding_mask=mask)


# --- frozen models and training ---------------------------------------------------------------------------------------


def one_step(model, parameters, **head):
    """What changed of some parameters in a step of an optimiser."""
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    probe = torch.nn.Linear(48, 1)
    probe(model(torch.randn(1, 4000))[0]).square().mean().backward()
    optimizer.step()
    optimizer.step()
    return [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]


@pytest.mark.parametrize("make", [lambda: BEATs(BEATsConfig(SMALL)), lambda: Tokenizers(TokenizersConfig(SMALL))])
def test_training_mode_of_a_model_that_is_frozen_by_default_warns_once(make):
    model = make()
    with pytest.warns(UserWarning, match=rf"{type(model).__name__} has fresh weights and is frozen.*freeze=False"):
        torch.nn.Sequential(model).train()
    assert not model.training
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train()
        make().eval()
        make().train(False)
        BEATs(BEATsConfig(SMALL), freeze=False).train()
        make().unfreeze().train()
        make().freeze().train()  # somebody wants it so


def test_a_frozen_model_from_a_file_does_not_warn_in_training_mode(tmp_path):
    torchbeats.save(small_model(), tmp_path / "m.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torchbeats.load(tmp_path / "m.safetensors").train()


def test_gradients_asked_for_by_hand_unfreeze():
    model = small_model()
    model.requires_grad_(True)
    assert not model.training  # only the mode that was set
    assert model.train().training
    assert sum(one_step(model, model.parameters())) > 40  # all but those whose gradient is zero
    part = small_model()
    part.encoder.layers[1].requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert part.train().training
        changed = one_step(part, part.parameters())
    names = [name for (name, _), new in zip(part.named_parameters(), changed, strict=True) if new]
    assert names
    shared = "encoder.layers.0.self_attn.relative_attention_bias.weight"  # the table of all layers
    assert all(name == shared or name.startswith("encoder.layers.1.") for name in names)


def test_an_optimiser_that_can_change_nothing_warns_once():
    def warned(model, groups):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            optimizer = torch.optim.SGD(groups, lr=0.1)
            optimizer.step()
            optimizer.step()
        assert all("parameters of a frozen BEATs, which it cannot change" in str(w.message) for w in said)
        return len(said)

    fresh, head = small_model(), torch.nn.Linear(48, 2)
    asked = small_model().freeze()
    assert warned(fresh, fresh.parameters()) == 1
    assert warned(fresh, [*fresh.parameters(), *head.parameters()]) == 1  # random weights that stay so
    assert warned(asked, asked.parameters()) == 1
    assert warned(asked, [{"params": asked.parameters()}, {"params": head.parameters()}]) == 1
    assert warned(asked, [*asked.parameters(), *head.parameters()]) == 0  # a probe, as many write it
    assert warned(asked, head.parameters()) == 0
    optimizer = torch.optim.AdamW(head.parameters())
    optimizer.step()
    optimizer.add_param_group({"params": list(asked.parameters())})  # as schedules of unfreezing do
    with pytest.warns(UserWarning, match="cannot change"):
        optimizer.step()
    assert warned(fresh, fresh.unfreeze().parameters()) == 0
    assert warned(asked, asked.requires_grad_(True).parameters()) == 0


# --- hooks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["forward", "pre", "every module", "replaced forward"])
@pytest.mark.parametrize("fields", [{}, {"activation_fn": "glu"}, {"deep_norm": False, "layer_norm_first": True}])
def test_every_module_can_be_watched(fields, kind):
    """Fast paths that go around a module give way to whoever looks at it, one module at a time."""
    model = small_model(finetuned_model=True, predictor_class=3, **fields)
    wav = torch.from_numpy(noise(30.0)).view(2, -1)  # long enough for the ways that work in pieces
    with torch.no_grad():
        expected = model(wav)[1]
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.ModuleList):  # never called
                continue
            calls = []
            if kind == "forward":
                handle = module.register_forward_hook(lambda *_, calls=calls: calls.append(1))
            elif kind == "pre":
                handle = module.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
            elif kind == "every module":
                handle = torch.nn.modules.module.register_module_forward_hook(
                    lambda m, *_, calls=calls, module=module: calls.append(1) if m is module else None
                )
            else:
                original = module.forward
                module.forward = lambda *args, calls=calls, original=original, **kwargs: (
                    calls.append(1),
                    original(*args, **kwargs),
                )[1]
            torch.testing.assert_close(model(wav)[1], expected, atol=1e-5, rtol=0)
            assert len(calls) == 1, name
            if kind == "replaced forward":
                del module.forward
            else:
                handle.remove()


def test_every_gradient_can_be_watched():
    model, seen = small_model().unfreeze().eval(), set()
    for name, module in model.named_modules():
        module.register_full_backward_hook(lambda *_, name=name: seen.add(name))
    model(torch.randn(1, 4000))[0].square().mean().backward()
    # Not through the front end, nor into a table of indices.
    expected = {name for name, _ in model.named_modules()} - {"fbank", "predictor_dropout", "encoder.layers"}
    assert {name for name in expected if "relative_attention_bias" not in name} <= seen


def test_a_hook_on_the_gate_sees_and_changes_its_eight_outputs():
    model, shapes = small_model(), []
    wav = torch.from_numpy(noise(1.0)).unsqueeze(0)
    before = model(wav)[0]
    gate = model.encoder.layers[0].self_attn.grep_linear
    handle = gate.register_forward_hook(lambda _, inputs, output: shapes.append((inputs[0].shape, output.shape)))
    torch.testing.assert_close(model(wav)[0], before, atol=1e-5, rtol=0)
    assert shapes == [((1, 4, 48, 12), (1, 4, 48, 8))]  # (B, H, T, D), as in the reference
    handle.remove()
    handle = gate.register_forward_hook(lambda _, __, output: output + 1)
    assert (model(wav)[0] - before).abs().max() > 1e-4
    handle.remove()


def test_an_adapter_in_the_place_of_the_gate_is_used():
    class Adapted(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.weight, self.bias = base, base.weight, base.bias

        def forward(self, x):
            return self.base(x) + 1

    model = small_model()
    wav = torch.from_numpy(noise(1.0)).unsqueeze(0)
    before = model(wav)[0]
    attention = model.encoder.layers[0].self_attn
    attention.grep_linear = Adapted(attention.grep_linear)
    assert (model(wav)[0] - before).abs().max() > 1e-4
