"""Settings: defaults, updates, and what no model can be built from."""

import copy
import pickle

import pytest

from torchbeats import BEATsConfig, TokenizersConfig
from torchbeats.config import SIZES

DEFAULTS = {
    "input_patch_size": 16,
    "embed_dim": 512,
    "conv_bias": False,
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "activation_fn": "gelu",
    "layer_wise_gradient_decay_ratio": 1.0,
    "layer_norm_first": False,
    "deep_norm": False,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "dropout_input": 0.0,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "relative_position_embedding": False,
    "num_buckets": 320,
    "max_distance": 1280,
    "gru_rel_pos": False,
    "finetuned_model": False,
    "predictor_dropout": 0.1,
    "predictor_class": 527,
}
OURS = {"predictor_pool": "mean", "problem_type": "multi_label", "fbank_mean": 15.41663, "fbank_std": 6.55582}
CODEBOOK = {"quant_n": 1024, "quant_dim": 256}


@pytest.mark.parametrize(
    ("kind", "expected"), [(BEATsConfig, DEFAULTS | OURS), (TokenizersConfig, DEFAULTS | OURS | CODEBOOK)]
)
def test_defaults(kind, expected):
    assert kind().to_dict() == expected
    kind().check()


def test_fields_come_before_the_dictionary_and_that_before_the_defaults():
    cfg = BEATsConfig({"encoder_layers": 3, "embed_dim": 64}, encoder_layers=5)
    assert (cfg.encoder_layers, cfg.embed_dim, cfg.conv_pos) == (5, 64, 128)


def test_update_overwrites_what_it_names():
    cfg = BEATsConfig(embed_dim=64)
    cfg.update({"encoder_layers": 3})
    assert cfg.to_dict() == DEFAULTS | OURS | {"embed_dim": 64, "encoder_layers": 3}


@pytest.mark.parametrize("kind", [BEATsConfig, TokenizersConfig])
def test_unknown_keys_of_a_checkpoint_are_kept(kind):
    cfg = kind({"label_smoothing": 0.1, "embed_dim": 64})
    cfg.update({"corpus": "AS-2M"})
    assert (cfg.label_smoothing, cfg.corpus, cfg.embed_dim) == (0.1, "AS-2M", 64)
    for twin in (copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg)), kind(cfg.to_dict())):
        assert twin.to_dict() == cfg.to_dict()
        assert twin == cfg


def test_configs_are_independent():
    given = {"embed_dim": 64}
    cfg = BEATsConfig(given)
    cfg.update({"embed_dim": 32})
    cfg.to_dict()["encoder_layers"] = 1
    assert given == {"embed_dim": 64}
    assert cfg.encoder_layers == BEATsConfig().encoder_layers == 12
    assert BEATsConfig().embed_dim == 512


@pytest.mark.parametrize("kind", [BEATsConfig, TokenizersConfig])
def test_unknown_keyword_is_a_type_error_that_names_it(kind):
    with pytest.raises(TypeError, match=rf"{kind.__name__} has no field encoder_layer\b.*encoder_layers"):
        kind(encoder_layer=3)


def test_only_tokenizers_have_a_codebook():
    with pytest.raises(TypeError, match="quant_n"):
        BEATsConfig(quant_n=64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder_layers": 0}, "encoder_layers must be at least 1, not 0"),
        ({"conv_pos": -1}, "conv_pos must be at least 1, not -1"),
        ({"encoder_layers": 2.5}, "encoder_layers must be of type int, not 2.5"),
        ({"embed_dim": "512"}, "embed_dim must be of type int, not '512'"),
        ({"dropout": None}, "dropout must be of type float, not None"),
        ({"deep_norm": "yes"}, "deep_norm must be of type bool, not 'yes'"),
        ({"activation_fn": 1}, "activation_fn must be of type str, not 1"),
        ({"input_patch_size": 24}, "input_patch_size must divide the 128 mel bins; 24"),
        ({"encoder_attention_heads": 7}, r"encoder_embed_dim \(768\).*encoder_attention_heads \(7\)"),
        ({"conv_pos_groups": 7}, r"encoder_embed_dim \(768\).*conv_pos_groups \(7\)"),
        ({"deep_norm": True, "layer_norm_first": True}, "exclude each other"),
        ({"problem_type": "regression"}, "multi_label, single_label, not 'regression'"),
    ],
)
def test_check_names_what_is_impossible(fields, message):
    for kind in (BEATsConfig, TokenizersConfig):
        with pytest.raises(ValueError, match=message):
            kind(**fields).check()


def test_check_looks_at_the_codebook_too():
    with pytest.raises(ValueError, match="quant_dim must be at least 1"):
        TokenizersConfig(quant_dim=0).check()


def test_whole_numbers_will_do_for_fractions():
    BEATsConfig(dropout=0, layer_wise_gradient_decay_ratio=1).check()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("base", {}),
        (
            "large",
            {
                "encoder_layers": 24,
                "encoder_embed_dim": 1024,
                "encoder_ffn_embed_dim": 4096,
                "encoder_attention_heads": 16,
            },
        ),
    ],
)
def test_named_sizes_are_those_of_the_published_models(size, expected):
    published = {"deep_norm": True, "relative_position_embedding": True, "gru_rel_pos": True, "max_distance": 800}
    cfg = BEATsConfig(SIZES[size])
    cfg.check()
    assert cfg.to_dict() == DEFAULTS | OURS | published | expected
