"""The folder that transformers opens, its Auto classes, Trainer and pipeline; numbers are those of torchbeats."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import torchbeats
from helpers import noise, small_model, small_tokenizer, tone, write_sound
from hub_server import HubServer
from torchbeats import CheckpointError, ModelError, SettingsError, audio
from torchbeats.weights import transformers_folder

transformers = pytest.importorskip("transformers", minversion="5")
ours = pytest.importorskip("torchbeats.integrations.transformers")
transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()

AutoModel, AutoModelForAudioClassification = transformers.AutoModel, transformers.AutoModelForAudioClassification
AutoFeatureExtractor = transformers.AutoFeatureExtractor
EXAMPLES = Path(__file__).parents[2] / "examples" / "audio"
IDS = {0: "/m/09x0r", 1: "/m/04rlf", 2: "/m/0bt9lr"}  # Speech, Music, Dog
VARIANTS = {
    "published": {},
    "pre-norm": {"layer_norm_first": True, "deep_norm": False},
    "no position table": {"relative_position_embedding": False, "gru_rel_pos": False},
    "same width": {"embed_dim": 48},
}


def labelled(**fields):
    model = small_model(finetuned_model=True, predictor_class=3, **fields)
    model.label_dict = dict(IDS)
    return model


@pytest.fixture
def model():
    return small_model()


@pytest.fixture
def folder(tmp_path, model):
    torchbeats.save(model, f"{tmp_path}/folder/")
    return tmp_path / "folder"


@pytest.fixture
def batch(folder):
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    sounds = [noise(1.3, seed=1), noise(2), tone(0.7)]
    return extractor(sounds, sampling_rate=16_000, padding=True, return_tensors="pt")


def close(first, second, tolerance=1e-5):
    torch.testing.assert_close(first, second, atol=tolerance, rtol=0)


# --- numbers


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_numbers_of_a_ragged_batch(tmp_path, batch, variant):
    model = small_model(**VARIANTS[variant])
    torchbeats.save(model, f"{tmp_path}/variant/")
    auto = AutoModel.from_pretrained(tmp_path / "variant")
    assert isinstance(auto, ours.BEATsModel)
    assert not auto.training
    out = auto(**batch, output_hidden_states=True, output_attentions=True)
    lengths = batch["attention_mask"].sum(1)
    encoded = model.encode(batch["input_values"], lengths)
    own = ~encoded.padding_mask
    assert torch.equal(auto.patch_mask(batch["attention_mask"]), own)
    close(out.last_hidden_state[own], encoded.x[own])
    close(out.pooler_output, encoded.pooled())
    for row, length in enumerate(lengths):  # and alone
        alone = model.encode(batch["input_values"][row : row + 1, :length])
        close(out.pooler_output[row : row + 1], alone.pooled())
    assert len(out.hidden_states) == 3
    for layer in range(2):
        close(out.hidden_states[layer][own], model.encode(batch["input_values"], lengths, layer=layer).x[own])
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    for weights in out.attentions:
        assert weights.shape == (3, 4, 96, 96)
        close(weights.sum(-1)[:, 0][own], torch.ones(int(own.sum())))
        assert not weights.masked_select(encoded.padding_mask[:, None, None, :]).any()


@torch.no_grad()
def test_attentions_make_no_difference(folder, batch):
    auto = AutoModel.from_pretrained(folder)
    plain = auto(**batch)
    assert plain.attentions is plain.hidden_states is None
    close(auto(**batch, output_attentions=True).pooler_output, plain.pooler_output)
    assert not auto.backbone.encoder.layers[0].self_attn._forward_hooks
    last, pooled = auto(**batch, return_dict=False)
    assert torch.equal(last, plain.last_hidden_state)
    assert torch.equal(pooled, plain.pooler_output)


@torch.no_grad()
def test_a_mask_is_not_needed_and_is_looked_at(folder, model):
    auto = AutoModel.from_pretrained(folder)
    wav = torch.from_numpy(noise(1)).unsqueeze(0)
    close(auto(wav).pooler_output, model.encode(wav).pooled())
    with pytest.raises(torchbeats.InputError, match="the same"):
        auto(wav, attention_mask=torch.ones(1, 50))
    with pytest.raises(ValueError, match="at the end"):
        auto(wav, attention_mask=torch.cat([torch.zeros(1, 100), torch.ones(1, wav.size(1) - 100)], 1))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_attention_implementations_are_the_same(folder, batch, model, implementation):
    auto = AutoModel.from_pretrained(folder, attn_implementation=implementation)
    assert auto.config._attn_implementation == implementation
    close(auto(**batch).pooler_output, model.encode(batch["input_values"], batch["attention_mask"].sum(1)).pooled())


def test_an_attention_that_is_not_there_is_refused(folder):
    with pytest.raises((ValueError, ImportError), match=r"(?i)flash"):
        AutoModel.from_pretrained(folder, attn_implementation="flash_attention_2")


@torch.no_grad()
def test_half_precision_keeps_the_front_end(folder, batch):
    auto = AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    fresh = torchbeats.BEATs(torchbeats.BEATsConfig()).fbank
    assert torch.equal(auto.backbone.fbank.window, fresh.window)
    assert torch.equal(auto.backbone.fbank.filters, fresh.filters)
    wav = batch["input_values"][2:, :11_200]
    exact, out = AutoModel.from_pretrained(folder)(wav).pooler_output, auto(wav).pooler_output
    assert out.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(out.float(), exact).min() > 0.999


def test_fresh_weights_are_those_of_torchbeats():
    torch.manual_seed(0)
    config = ours.BEATsConfig(
        num_hidden_layers=2, hidden_size=96, intermediate_size=192, num_attention_heads=4, conv_pos=16
    )
    assert (config.encoder_layers, config.max_distance, config.deep_norm) == (2, 800, True)
    auto, model = ours.BEATsModel(config), torchbeats.BEATs(config.settings(), freeze=False)
    names = {name.replace("pos_conv.0.parametrizations.weight.original0", "pos_conv.0.weight_g")
             .replace("pos_conv.0.parametrizations.weight.original1", "pos_conv.0.weight_v"): tensor
             for name, tensor in auto.backbone.state_dict().items()}  # fmt: skip
    state = model.state_dict()
    assert names.keys() == state.keys()
    for name, tensor in names.items():
        assert tensor.isfinite().all()
        if name.endswith("weight_g"):  # few numbers; below
            continue
        spread = float(state[name].std(unbiased=False))
        assert float(tensor.std(unbiased=False)) == pytest.approx(spread, rel=0.3, abs=2e-3), name
    close(auto.backbone.encoder.pos_conv[0].weight, names["encoder.pos_conv.0.weight_v"], 1e-6)
    assert all(parameter.requires_grad for parameter in auto.parameters())


def test_a_config_that_no_model_can_have():
    with pytest.raises(SettingsError, match="multiple"):
        ours.BEATsModel(ours.BEATsConfig(encoder_embed_dim=50))


# --- heads


@pytest.mark.parametrize("problem", ["multi_label", "single_label"])
@pytest.mark.parametrize("pool", ["mean", "bands"])
def test_logits_loss_and_gradients(tmp_path, batch, problem, pool):
    model = labelled(problem_type=problem, predictor_pool=pool)
    torchbeats.save(model, f"{tmp_path}/labelled/")
    auto = AutoModelForAudioClassification.from_pretrained(tmp_path / "labelled")
    assert auto.config.problem_type == f"{problem}_classification"
    assert auto.config.id2label == {0: "Speech", 1: "Music", 2: "Dog"}
    logits = model.logits(batch["input_values"], lengths=batch["attention_mask"].sum(1))
    if problem == "multi_label":
        labels = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
    else:
        labels = torch.tensor([0, 2, 1])
        loss = torch.nn.functional.cross_entropy(logits, labels)
    out = auto(**batch, labels=labels)
    close(out.logits.detach(), logits)
    close(out.loss.detach(), loss)
    out.loss.backward()
    assert all(parameter.grad is not None for parameter in auto.parameters())


def test_a_new_head_and_what_it_is_for(folder, batch):
    auto = AutoModelForAudioClassification.from_pretrained(folder, num_labels=4)
    assert auto.classifier.weight.shape == (4, 48)
    assert auto.classifier.weight.isfinite().all()
    assert auto.config.problem_type is None
    assert auto(**batch, labels=torch.tensor([0, 3, 1])).loss.isfinite()
    assert auto.config.problem_type == "single_label_classification"


def test_labels_that_do_not_suit_the_problem_type(tmp_path, batch):
    """A tagger keeps its problem type when it gets a head for classes of one's own."""
    torchbeats.save(labelled(), f"{tmp_path}/labelled/")
    options = {"num_labels": 2, "ignore_mismatched_sizes": True}
    auto = AutoModelForAudioClassification.from_pretrained(tmp_path / "labelled", **options)
    with pytest.raises(torchbeats.InputError, match='problem_type="single_label_classification"'):
        auto(**batch, labels=torch.tensor([0, 1, 1]))
    options["problem_type"] = "single_label_classification"
    auto = AutoModelForAudioClassification.from_pretrained(tmp_path / "labelled", **options)
    assert auto.classifier.weight.shape == (2, 48)
    loss = auto(**batch, labels=torch.tensor([0, 1, 1])).loss
    assert float(loss.detach()) == pytest.approx(np.log(2), abs=0.5)  # a fresh head knows nothing


@torch.no_grad()
def test_the_encoder_of_a_labelled_model(tmp_path, batch):
    model = labelled()
    torchbeats.save(model, f"{tmp_path}/labelled/")
    auto = AutoModel.from_pretrained(tmp_path / "labelled")
    close(auto(**batch).pooler_output, model.encode(batch["input_values"], batch["attention_mask"].sum(1)).pooled())


def test_the_pipeline(tmp_path):
    model = labelled()
    torchbeats.save(model, f"{tmp_path}/labelled/")
    pipe = transformers.pipeline("audio-classification", model=str(tmp_path / "labelled"))
    options = {}
    if "multi_label" not in inspect.getsource(transformers.AudioClassificationPipeline.postprocess):  # before 5.23
        options["function_to_apply"] = "sigmoid"
    results = {row["label"]: row["score"] for row in pipe(noise(1.5), **options)}
    expected = model(torch.from_numpy(noise(1.5)).unsqueeze(0))[1][0]  # a sigmoid: they do not add up to one
    assert results == pytest.approx(dict(zip(["Speech", "Music", "Dog"], expected.tolist(), strict=True)), abs=1e-5)


# --- the feature extractor


def test_what_the_feature_extractor_takes(tmp_path):
    extractor = ours.BEATsFeatureExtractor()
    sound = tone(0.5, 44_100)
    expected = audio.from_array(sound, 44_100)
    stereo = np.stack([sound, sound])
    for given in (sound, torch.from_numpy(sound), sound.tolist(), [sound], sound[None], [stereo]):
        out = extractor(given, sampling_rate=44_100, return_tensors="np")
        np.testing.assert_allclose(out["input_values"], expected[None], atol=1e-6)
        assert out["attention_mask"].tolist() == [[1] * len(expected)]
    pcm = (noise(0.5) * 2**15).astype(np.int16)
    np.testing.assert_allclose(extractor(pcm, sampling_rate=16_000)["input_values"][0], pcm / 2**15, atol=1e-7)
    path = write_sound(tmp_path / "sound.wav", sound, 44_100, "FLOAT")
    for given in (path, str(path), [path]):
        np.testing.assert_allclose(extractor(given)["input_values"][0], expected, atol=1e-6)
    with pytest.raises(torchbeats.AudioError, match="cannot be opened"):
        extractor("missing.wav")
    with pytest.warns(UserWarning, match="16000"):
        extractor(noise(0.5))
    limits = {"padding": "max_length", "max_length": 8000, "truncation": True}
    cut = extractor([noise(1), noise(0.2)], sampling_rate=16_000, **limits)
    assert [len(row) for row in cut["input_values"]] == [8000, 8000]
    assert [int(row.sum()) for row in cut["attention_mask"]] == [8000, 3200]


def test_what_the_feature_extractor_refuses():
    extractor = ours.BEATsFeatureExtractor()
    broken = noise(0.5)
    broken[7] = np.nan
    for given, message in (([noise(1), broken], "Sound 1: "), ([], "array of samples"), ({}, "array of samples")):
        with pytest.raises(torchbeats.InputError, match=message):
            extractor(given, sampling_rate=16_000)
    with pytest.raises(SettingsError, match="44"):
        ours.BEATsFeatureExtractor(sampling_rate=44_100)
    with pytest.raises(SettingsError, match="padding_side"):
        ours.BEATsFeatureExtractor(padding_side="left")


# --- files


def same(first, second):
    assert first.cfg.to_dict() == second.cfg.to_dict()
    assert first.label_dict == second.label_dict
    state = second.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in first.state_dict().items())


@pytest.mark.parametrize("headed", [True, False])
def test_convert_there_and_back(tmp_path, run, headed):
    model = labelled(predictor_pool="bands") if headed else small_model(fbank_mean=11.0)
    torchbeats.save(model, tmp_path / "model.safetensors")
    code, _, said = run("convert", tmp_path / "model.safetensors", f"{tmp_path}/folder/")
    assert code == 0, said
    code, _, said = run("convert", tmp_path / "folder", tmp_path / "again.safetensors")
    assert code == 0, said
    same(model, torchbeats.load(tmp_path / "again.safetensors"))
    auto = (AutoModelForAudioClassification if headed else AutoModel).from_pretrained(tmp_path / "folder")
    auto.save_pretrained(tmp_path / "saved")
    same(model, torchbeats.load(tmp_path / "saved"))
    code, _, said = run("convert", tmp_path / "model.safetensors", tmp_path / "folder")
    assert code == 2
    assert "--overwrite" in said
    assert run("convert", "--overwrite", tmp_path / "saved", tmp_path / "folder")[0] == 0
    same(model, torchbeats.load(tmp_path / "folder"))


def test_a_model_in_several_files_is_refused_in_a_sentence(folder, tmp_path):
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    with pytest.raises(torchbeats.HubError, match=r"one model in 3 files.*larger max_shard_size"):
        torchbeats.load(tmp_path / "parts")


def test_half_the_size_and_loaded_as_float32(tmp_path, model, folder):
    torchbeats.save(model, f"{tmp_path}/half/", torch.float16)
    sizes = [(place / "model.safetensors").stat().st_size for place in (tmp_path / "half", folder)]
    assert sizes[0] < 0.6 * sizes[1]
    assert {p.dtype for p in AutoModel.from_pretrained(tmp_path / "half").parameters()} == {torch.float32}


def test_what_makes_no_folder(tmp_path, run):
    with pytest.raises(ModelError, match="tokenizer"):
        torchbeats.save(small_tokenizer(), f"{tmp_path}/tokenizer/")
    torchbeats.save(small_model(), tmp_path / "model.safetensors")
    code, _, said = run("convert", tmp_path / "model.safetensors", tmp_path / "nothing")
    assert code == 2
    assert "in / for a folder" in said


def test_labels_and_heads_of_folders_that_others_wrote(tmp_path):
    torchbeats.save(labelled(), f"{tmp_path}/folder/")
    file = tmp_path / "folder" / "config.json"
    about = json.loads(file.read_text())

    def rewritten(**changes):
        file.write_text(json.dumps({**about, **changes}))
        return torchbeats.load(tmp_path / "folder")

    assert rewritten().label_dict == IDS
    others = {"0": "Speech", "1": "owl", "2": "frog"}
    assert rewritten(id2label=others).label_dict == {0: "/m/09x0r", 1: "owl", 2: "frog"}
    assert rewritten(id2label={str(i): f"LABEL_{i}" for i in range(3)}).label_dict is None
    assert rewritten(problem_type=None).cfg.problem_type == "single_label"  # for transformers, a softmax
    with pytest.raises(CheckpointError, match="regression"):
        rewritten(problem_type="regression")
    with pytest.raises(CheckpointError, match="2 labels for a head of 3"):
        rewritten(id2label={"0": "a", "1": "b"})


def test_classes_with_the_same_name_keep_their_ids(tmp_path):
    model = labelled()
    model.label_dict = {0: "same", 1: "same", 2: "other"}
    torchbeats.save(model, f"{tmp_path}/folder/")
    about = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert about["id2label"] == {"0": "same", "1": "same", "2": "other"}
    assert torchbeats.load(tmp_path / "folder").label_dict == model.label_dict


def test_tied_position_table_is_one(folder, tmp_path):
    auto = AutoModel.from_pretrained(folder)
    tables = {id(layer.self_attn.relative_attention_bias.weight) for layer in auto.backbone.encoder.layers}
    assert len(tables) == 1
    auto.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").stat().st_size == pytest.approx(
        (folder / "model.safetensors").stat().st_size, rel=0.05
    )


OF_ITS_OWN = """
import sys
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING
CONFIG_MAPPING._mapping["beats"] = "BertConfig"  # as if transformers had a model of this name
import torchbeats.integrations.transformers as ours
assert isinstance(AutoConfig.from_pretrained(sys.argv[1]), ours.BEATsConfig)
assert isinstance(AutoFeatureExtractor.from_pretrained(sys.argv[1]), ours.BEATsFeatureExtractor)
assert isinstance(AutoModel.from_pretrained(sys.argv[1]), ours.BEATsModel)
"""


def test_beside_a_model_of_that_name_in_transformers(folder):
    code = [sys.executable, "-c", OF_ITS_OWN, str(folder)]
    done = subprocess.run(code, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr


REMOTE = """
import sys
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, AutoProcessor
options = {"trust_remote_code": True}
folder, *places = sys.argv[1:]
for saved in places:
    model = AutoModelForAudioClassification.from_pretrained(folder, **options)
    extractor = AutoFeatureExtractor.from_pretrained(folder, **options)
    processor = AutoProcessor.from_pretrained(folder, **options)
    home = "torchbeats.integrations.transformers."
    assert type(processor).__module__ == type(extractor).__module__ == home + "feature_extraction"
    assert type(AutoModel.from_pretrained(folder, **options)).__module__ == home + "modeling"
    model.save_pretrained(saved)
    extractor.save_pretrained(saved)
    folder = saved
"""


def test_trust_remote_code(tmp_path):
    model = labelled()
    torchbeats.save(model, f"{tmp_path}/folder/")
    assert len(transformers_folder.SHIM_TEXT.splitlines()) <= 12
    env = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, *(str(tmp_path / name) for name in ("folder", "saved", "again"))],
        env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json", "torchbeats_transformers.py",
    }  # fmt: skip
    same(model, torchbeats.load(tmp_path / "again"))


PUSH = """
import sys
import torchbeats.integrations.transformers
from transformers import AutoFeatureExtractor, AutoModel
model = AutoModel.from_pretrained(sys.argv[1])
model.push_to_hub("owner/beats", token="hf_test")
AutoFeatureExtractor.from_pretrained(sys.argv[1]).push_to_hub("owner/beats", token="hf_test")
again = AutoModel.from_pretrained("owner/beats")
assert all((a == b).all() for a, b in zip(again.state_dict().values(), model.state_dict().values()))
assert torchbeats.load("owner/beats").digest() == torchbeats.load(sys.argv[1]).digest()
"""


def test_push_to_hub_and_back(folder, tmp_path):
    with HubServer() as hub:
        env = {**os.environ, **hub.env(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run([sys.executable, "-c", PUSH, str(folder)], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        names = {"config.json", "model.safetensors", "preprocessor_config.json", "torchbeats_transformers.py"}
        assert names <= hub.repos["owner/beats"].files.keys()


# --- training


class Sounds(torch.utils.data.Dataset):
    def __init__(self, paths, extractor, classes):
        self.paths, self.extractor, self.classes = paths, extractor, classes

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        path = self.paths[index]
        values = self.extractor(audio.load(path)[:24_000], sampling_rate=16_000)["input_values"][0]
        return {"input_values": values, "labels": self.classes.index(path.parent.name)}


def test_a_class_folder_trained_by_trainer_and_tagged(tmp_path, run, folder):
    """One epoch on the sounds of examples/, in folders by class; then the command reads what Trainer saved."""
    classes = ["music", "speech"]
    for path in sorted(EXAMPLES.iterdir()):
        if path.suffix != ".md":
            name = "speech" if path.name.startswith("speech") else "music"
            (tmp_path / "sounds" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "sounds" / name / path.name).symlink_to(path)
    paths = sorted((tmp_path / "sounds").glob("*/*"))
    assert len(paths) == 15
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    names = dict(enumerate(classes))
    auto = AutoModelForAudioClassification.from_pretrained(
        folder, num_labels=2, id2label=names, label2id={name: index for index, name in names.items()}
    )
    before = auto.beats.backbone.encoder.layers[0].fc1.weight.detach().clone()

    def collate(rows):
        batch = extractor.pad([{"input_values": row["input_values"]} for row in rows], return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}

    arguments = transformers.TrainingArguments(
        str(tmp_path / "run"), num_train_epochs=1, per_device_train_batch_size=4, learning_rate=1e-3, use_cpu=True,
        report_to=[], save_strategy="epoch", disable_tqdm=True, eval_strategy="epoch", remove_unused_columns=False,
    )  # fmt: skip
    data = Sounds(paths, extractor, classes)
    trainer = transformers.Trainer(
        auto, arguments, train_dataset=data, eval_dataset=data, data_collator=collate, processing_class=extractor
    )
    result = trainer.train()
    assert result.global_step == 4
    assert np.isfinite(result.training_loss)
    assert not torch.equal(auto.beats.backbone.encoder.layers[0].fc1.weight, before)
    predictions = trainer.predict(data).predictions
    assert predictions.shape == (15, 2)
    trainer.save_model(str(tmp_path / "trained"))

    model = torchbeats.load(tmp_path / "trained")
    assert model.label_dict == names
    assert model.cfg.problem_type == "single_label"
    close(model.logits(torch.from_numpy(audio.load(paths[0])[:24_000]).unsqueeze(0)), torch.from_numpy(predictions[:1]))
    checkpoints = sorted((tmp_path / "run").glob("checkpoint-*"))
    same(model, torchbeats.load(checkpoints[0]))
    code, out, said = run("tag", "-m", tmp_path / "trained", paths[0])
    assert code == 0, said
    assert "music" in out
    assert "speech" in out


def test_adapters_trained_by_trainer_and_merged(tmp_path, folder):
    """LoRA beside a new head; without a collator of one's own, Trainer pads by the feature extractor."""
    peft = pytest.importorskip("peft")
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    auto = AutoModelForAudioClassification.from_pretrained(folder, num_labels=2)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    tuned = peft.get_peft_model(auto, lora)
    data = [{"input_values": noise(1 + 0.1 * row, seed=row), "labels": row % 2} for row in range(4)]
    arguments = transformers.TrainingArguments(
        str(tmp_path / "run"), num_train_epochs=1, per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, label_names=["labels"],
    )  # fmt: skip
    result = transformers.Trainer(tuned, arguments, train_dataset=data, processing_class=extractor).train()
    assert result.global_step == 2
    wav = torch.from_numpy(data[1]["input_values"]).unsqueeze(0)
    with torch.no_grad():
        adapted, plain = tuned.eval()(wav).logits, AutoModel.from_pretrained(folder)(wav).pooler_output
    merged = tuned.merge_and_unload()
    assert (merged.beats(wav).pooler_output - plain).abs().max() > 1e-4
    merged.save_pretrained(tmp_path / "merged")
    close(torchbeats.load(tmp_path / "merged").logits(wav), adapted, 2e-5)


def test_import_brings_none_of_the_neighbours():
    neighbours = {"transformers", "sentence_transformers", "mteb", "datasets", "peft", "speechbrain", "hyperpyyaml"}
    code = f"import sys, torchbeats, torchbeats.cli; print(*{neighbours} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
