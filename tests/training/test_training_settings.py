"""What a run can be told, and what is refused with a sentence that helps."""

import dataclasses
import os
import time

import pytest
import yaml

from torchbeats.errors import SettingsError
from torchbeats.training.configuring import PRESETS, finetune_settings, settings
from torchbeats.training.settings import Settings


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return path

    return write


def test_defaults_are_those_of_the_published_size():
    chosen = settings()
    assert chosen.size == "base"
    assert chosen.model.lr == 5e-4
    assert chosen.beats_config().encoder_layers == 12


@pytest.mark.parametrize("size", list(PRESETS))
def test_every_size_makes_sense(size):
    chosen = settings(size)
    assert chosen.size == size
    assert chosen.tokenizers_config().quant_n == chosen.tokens.quant_n


def test_each_kind_of_setting_wins_over_the_one_before(file):
    assert Settings().model.steps == 400_000
    assert settings("nano").model.steps == PRESETS["nano"]["model"]["steps"]
    path = file("model: {steps: 30, lr: 0.1}\nseed: 1\n")
    chosen = settings("nano", path)
    assert (chosen.model.steps, chosen.model.lr, chosen.seed) == (30, 0.1, 1)
    assert chosen.model.warmup == PRESETS["nano"]["model"]["warmup"]  # what the file does not name stays
    chosen = settings("nano", path, ["model.steps=40", "seed=2"])
    assert (chosen.model.steps, chosen.model.lr, chosen.seed) == (40, 0.1, 2)
    assert settings("nano", path, ["seed=2"], seed=3, iterations=None).seed == 3


def test_the_size_of_a_file_brings_its_preset(file):
    path = file("size: nano\n")
    assert settings("base", path) == settings("nano")


def test_a_size_that_is_set_brings_its_preset():
    assert settings("base", assignments=["size=nano"]) == settings("nano")


def test_what_is_shown_can_be_given_again(file):
    chosen = settings("nano", assignments=["data.crop_seconds=[1, 2.5]", "model.lr=1e-5", "config.encoder_layers=3"])
    assert settings("base", file(yaml.safe_dump(chosen.to_dict()))) == chosen


def test_one_run_s_settings_leave_the_presets_alone():
    before = repr(PRESETS)
    settings("nano", assignments=["config.encoder_layers=3", "data.crop_seconds=1"]).data.crop_seconds.append(9.0)
    assert repr(PRESETS) == before
    assert settings("nano").beats_config().encoder_layers == 6


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-3", "1E-03"])
def test_numbers_as_people_write_them(file, text):
    assert settings("nano", assignments=[f"model.lr={text}"]).model.lr == 1e-3
    assert settings("nano", file(f"model: {{lr: {text}}}")).model.lr == 1e-3


def test_values_take_their_setting_s_type():
    chosen = settings(
        "nano",
        assignments=["data.crop_seconds=4", "data.batch_seconds=8", "model.steps=2e3", "trainer.precision=16"],
    )
    assert chosen.data.crop_seconds == [4.0]
    assert isinstance(chosen.data.batch_seconds, float)
    assert (chosen.model.steps, type(chosen.model.steps)) == (2000, int)
    assert chosen.trainer.precision == "16"
    assert settings("nano", assignments=["trainer.devices=2"]).trainer.devices == 2
    assert settings("nano", assignments=["trainer.devices=auto"]).trainer.devices == "auto"


def names(where=Settings, prefix=""):
    return [prefix + field.name for field in dataclasses.fields(where)]


@pytest.mark.parametrize(
    ("key", "there"),
    [
        ("learning_rate", names()),
        ("model.learning_rate", names(type(Settings().model), "model.")),
        ("data.crop", names(type(Settings().data), "data.")),
        ("config.layers", ["config.encoder_layers", "config.embed_dim"]),
    ],
)
def test_an_unknown_setting_is_refused_with_those_that_there_are(file, key, there):
    with pytest.raises(SettingsError) as error:
        settings("nano", assignments=[f"{key}=1"])
    assert key in str(error.value)
    assert all(name in str(error.value) for name in there)
    nested = "1"
    for name in reversed(key.split(".")):
        nested = f"{{{name}: {nested}}}"
    with pytest.raises(SettingsError) as from_file:
        settings("nano", file(nested))
    assert str(from_file.value) == str(error.value)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("learning_rate", ""),
        ("mask", " Did you mean model.mask?"),
        ("lr", " Did you mean model.lr or distillation.lr?"),
        ("model.step", " Did you mean model.steps?"),
        ("model.batch_seconds", " Did you mean data.batch_seconds?"),
        ("data.nothing_like_any", ""),
    ],
)
def test_a_name_in_the_wrong_place_is_recognised(key, meant):
    with pytest.raises(SettingsError) as error:
        settings("nano", assignments=[f"{key}=1"])
    assert str(error.value).endswith(f".{meant}") if meant else "Did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("model.steps=many", "model.steps must be of type int, not 'many'"),
        ("model.steps=1.5", "model.steps must be of type int, not 1.5"),
        ("model.lr=true", "model.lr must be of type float, not True"),
        ("seed=true", "seed must be of type int"),
        ("data.crop_seconds=[a]", "data.crop_seconds must be of type float"),
        ("model=3", "model must hold names and values, not 3"),
        ("config=3", "config must hold names and values"),
        ("model.lr", "key=value"),
        ("model.lr=[1", "The value of model.lr is not YAML"),
        ("config.encoder_layers=x", "config: "),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(assignment, said):
    with pytest.raises(SettingsError) as error:
        settings("nano", assignments=[assignment])
    assert said in str(error.value)


@pytest.mark.parametrize(
    "assignment",
    [
        "iterations=0",
        "seed=-1",
        "data.crop_seconds=[]",
        "data.crop_seconds=0.1",
        "data.crop_seconds=.nan",
        "data.batch_seconds=5",  # crops of the nano size have up to 10 s
        "data.band_limited=2",
        "data.workers=-2",
        "model.mask=1",
        "model.steps=0",
        "model.betas=[0.9]",
        "model.lr=.nan",
        "model.label_smoothing=2",
        "model.predictor_width=100",
        "model.mask_block=0",
        "model.masks=0",
        "model.mix=1.5",
        "model.utterance=-1",
        "model.mel_shift=200",
        "model.equaliser_db=-1",
        "data.batch_seconds=.inf",
        "distillation.reseed_below=1",
        "trainer.clip=-1",
        "model.predictor_layers=0",
        "tokens.quant_n=1",
        "tokens.quant_dim=0",
        "tokens.normalisation=none-such",
        "distillation.start=here",
        "distillation.kmeans_batches=0",  # these two would only fail when the first model is trained
        "distillation.estimator_layers=0",
        "trainer.log_every=0",
        "size=huge",
    ],
)
def test_a_value_that_would_fail_later_is_refused(assignment):
    with pytest.raises(SettingsError):
        settings("nano", assignments=[assignment])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 1\n- 2", "must hold names and values"),
        ("model: [", "is not YAML"),
        ("size: huge", "choose one of nano, tiny, base, large"),
        ("size: [nano]", "choose one of"),
    ],
)
def test_a_file_that_holds_no_settings(file, text, said):
    with pytest.raises(SettingsError, match=said):
        settings("nano", file(text))


def test_an_empty_file_changes_nothing(file):
    assert settings("nano", file("# nothing\n")) == settings("nano")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match=r"none\.yaml cannot be read"):
        settings("nano", tmp_path / "none.yaml")


def bomb(levels, merge=False):
    """Nine aliases of nine aliases of … of a word: a kilobyte that stands for 9 ** levels values."""
    lines = ["a0: &a0 {x: 1}" if merge else "a0: &a0 [x]"]
    for level in range(1, levels):
        many = f"[{', '.join([f'*a{level - 1}'] * 9)}]"
        lines.append(f"a{level}: &a{level} {{'<<': {many}}}" if merge else f"a{level}: &a{level} {many}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (bomb(200).encode(), "holds more than 10,000 values"),
        (bomb(200, merge=True).encode(), "holds more than 10,000 values"),
        (b"model: &m {lr: *m}", "holds more than 10,000 values"),
        (b"seed: " + b"[" * 20_000, "nest"),
        (b"- " * 20_000, "is nested more than 50 levels deep"),
        (b"[" + b"1," * 32_000 + b"]", "holds more than 10,000 values"),
        (b"[" + b"1," * 9_000 + b"]", "must hold names and values"),
        (b"seed: 0x" + b"f" * 60_000, "holds a number of 60,002 characters"),
        (b"seed: " + b":".join([b"59"] * 20_000), "holds a number of 59,999 characters"),
        (b"x" * 1_000 + b": 1", "There is no setting"),
        (b"config: {1: 2, a: 3}", "There is no setting"),
        ("größe: 1".encode("latin-1"), "is not UTF-8 text (byte 2)"),
        ("seed: 1".encode("utf-16"), "is not UTF-8 text (byte 0)"),
        (b"seed: " + b"9" * 6000, "holds a number of 6,000 characters"),
        (b"seed: 2001-99-99", "holds a value that cannot be read"),
        (b"#" * 100_000, "is larger than 64 kB"),
    ],
)
@pytest.mark.parametrize("settle", [lambda file: settings("nano", file), finetune_settings])
def test_files_that_are_no_settings_end_in_a_sentence_at_once(tmp_path, content, said, settle):
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    begin = time.process_time()
    with pytest.raises(SettingsError) as error:
        settle(file)
    assert time.process_time() - begin < 1
    assert said in str(error.value)
    assert len(str(error.value)) < 900
    assert str(error.value).startswith(str(file)) or "a value" not in said


def test_a_few_aliases_are_read(tmp_path):
    (tmp_path / "c.yaml").write_text("\ufeffmodel:\n  betas: &b [0.8, 0.9]\ndistillation: {betas: *b}\n", "utf-8")
    assert settings("nano", tmp_path / "c.yaml").distillation.betas == [0.8, 0.9]


def test_a_pipe_is_no_file_of_settings(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingsError, match="a named pipe"):
        settings("nano", tmp_path / "pipe")


INTEGERS = ["iterations", "seed", "data.workers", "tokens.quant_n", "tokens.quant_dim", "model.steps", "model.warmup"]
INTEGERS += ["model.predictor_layers", "model.predictor_width", "distillation.kmeans_batches", "trainer.accumulate"]
INTEGERS += ["distillation.estimator_layers", "trainer.nodes", "trainer.devices", "trainer.log_every"]


@pytest.mark.parametrize("name", [*INTEGERS, "data.batch_seconds", "model.lr", "model.betas", "data.crop_seconds"])
@pytest.mark.parametrize("value", ["true", "1e30", str(10**30), "-1e30", ".nan", ".inf"])
def test_no_number_that_a_setting_cannot_be(name, value):
    with pytest.raises(SettingsError, match=name.split(".")[0]):
        settings("nano", assignments=[f"{name}={value}"])


@pytest.mark.parametrize("name", ["data.views", "model.epochs", "model.freeze", "model.patience", "trainer.save_every"])
@pytest.mark.parametrize("value", ["true", "1e30", str(10**30), ".nan"])
def test_no_number_that_a_setting_of_fine_tuning_cannot_be(name, value):
    with pytest.raises(SettingsError, match=name):
        finetune_settings(assignments=[f"{name}={value}"])


@pytest.mark.parametrize("name", ["tokens.quant_n", "model.predictor_width", "distillation.estimator_layers"])
def test_no_size_that_memory_cannot_hold(name):
    with pytest.raises(SettingsError, match=name):
        settings("nano", assignments=[f"{name}=1000000000"])
