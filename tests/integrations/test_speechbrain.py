"""Recipes and training of SpeechBrain with the model that it names by ``!new:``."""

import ast
import doctest
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchbeats
from helpers import small_model

RECIPE = """
encoder: !new:torchbeats.BEATs
    ckp_path: {path}
    freeze: {freeze}
    output_all_hiddens: False

classifier: !new:torch.nn.Linear
    in_features: 48
    out_features: 3

modules:
    encoder: !ref <encoder>
    classifier: !ref <classifier>

opt_class: !name:torch.optim.SGD
    lr: 0.1
"""


@pytest.fixture
def checkpoint(tmp_path):
    torchbeats.save(small_model(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.mark.parametrize("freeze", [True, False])
def test_new_in_a_recipe(checkpoint, freeze):
    hyperpyyaml = pytest.importorskip("hyperpyyaml")
    recipe = hyperpyyaml.load_hyperpyyaml(RECIPE.format(path=checkpoint, freeze=freeze))
    encoder = recipe["modules"]["encoder"]
    assert isinstance(encoder, torchbeats.BEATs)
    assert encoder.frozen is freeze
    wav, wav_lens = torch.randn(2, 16_000), torch.tensor([1.0, 0.5])
    features = encoder.eval().extract_features(wav, wav_lens)[0]
    torch.testing.assert_close(features, torchbeats.load(checkpoint)(wav, wav_lens)[0])


def test_example_of_its_documentation():
    wav, wav_lens = torch.randn([4, 10_000]), torch.tensor([1.0, 0.5, 0.75, 1.0])
    model = torchbeats.BEATs()
    assert model.extract_features(wav, wav_lens)[0].shape == torch.Size([4, 24, 768])


def test_its_own_doctest_with_this_class():
    spec = importlib.util.find_spec("speechbrain")
    if spec is None:
        pytest.skip("speechbrain is not installed")
    source = Path(spec.origin).parent / "lobes/models/beats.py"  # read rather than imported: see below
    classes = {node.name: node for node in ast.parse(source.read_text()).body if isinstance(node, ast.ClassDef)}
    names = {**vars(torchbeats), "torch": torch}
    example = doctest.DocTestParser().get_doctest(ast.get_docstring(classes["BEATs"]), names, "BEATs", str(source), 0)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_every_name_of_its_module_is_here():
    names = (
        "BEATs BEATsConfig TransformerEncoder TransformerSentenceEncoderLayer MultiheadAttention GLU_Linear "
        "GradMultiply SamePad Swish gelu gelu_accurate get_activation_fn init_bert_params quant_noise"
    )
    assert not [name for name in names.split() if not hasattr(torchbeats, name)]


TRAINING = """
import sys, types
try:
    import torchaudio
except OSError:  # its compiled half wants CUDA, and is not what SpeechBrain's training loop needs
    half = types.ModuleType("torchaudio._extension")
    half._IS_TORCHAUDIO_EXT_AVAILABLE = False
    half.fail_if_no_align = lambda function: function
    half._check_cuda_version = lambda: None
    for name in [name for name in sys.modules if name.startswith("torchaudio")]:
        del sys.modules[name]
    sys.modules[half.__name__] = half

import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.core import Brain
from speechbrain.dataio.batch import PaddedBatch

freeze = sys.argv[2] == "True"
recipe = load_hyperpyyaml(open(sys.argv[1]))


class Sounds(Brain):
    def compute_forward(self, batch, stage):
        wavs, lens = batch.sig
        features = self.modules.encoder(wavs, lens)[0]
        return self.modules.classifier(features.mean(1))

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.cross_entropy(predictions, batch.label)


sounds = [{"sig": torch.randn(n), "label": i} for i, n in enumerate((16000, 9000))]
loader = torch.utils.data.DataLoader(sounds, batch_size=2, collate_fn=PaddedBatch)
before = {k: v.clone() for k, v in recipe["encoder"].state_dict().items()}
head = recipe["classifier"].weight.detach().clone()
brain = Sounds(recipe["modules"], recipe["opt_class"], run_opts={"device": "cpu"})
brain.fit(range(1), loader, loader, progressbar=False)
assert brain.optimizer_step == 1
assert not torch.equal(recipe["classifier"].weight, head)
changed = [k for k, v in recipe["encoder"].state_dict().items() if not torch.equal(v, before[k])]
assert bool(changed) is not freeze, changed
assert recipe["encoder"].training is False or not freeze
print("trained", len(changed))
"""


@pytest.mark.parametrize("freeze", [True, False])
def test_a_training_step_inside_brain(tmp_path, checkpoint, freeze):
    # Not in the extra: torchaudio, which it needs, has no build on PyPI for a PyTorch without CUDA, and one that cannot
    # be imported takes transformers down with it.
    if not torchbeats.extras.is_installed("speechbrain"):
        pytest.skip("speechbrain is not installed")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(path=checkpoint, freeze=freeze))
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, recipe, str(freeze)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "trained" in done.stdout
