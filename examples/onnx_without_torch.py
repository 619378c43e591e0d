"""Embed and tag a sound with ONNX Runtime alone: neither torch nor torchbeats is needed where this runs.

torchbeats export beats-iter3-plus-as2m-finetuned model.onnx --int8
python examples/onnx_without_torch.py model.onnx sound.wav           # at 16 kHz
"""

import json
import sys

import numpy as np
import onnxruntime
import soundfile

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
samples, rate = soundfile.read(sys.argv[2], dtype="float32", always_2d=True)
assert rate == 16_000, f"The model hears 16 kHz; {sys.argv[2]} has {rate} Hz."
waveform = samples.mean(axis=1)[np.newaxis]  # (batch, samples); shorter clips of a batch are filled up with zeros
lengths = np.array([waveform.shape[1]], np.int64)  # (batch,): each clip's own samples

names = [output.name for output in session.get_outputs()]
results = dict(zip(names, session.run(names, {"waveform": waveform, "lengths": lengths}), strict=True))
print("embedding", results["embedding"].shape, results["embedding"][0, :4])
if "probabilities" in results:
    labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    for index in np.argsort(-results["probabilities"][0])[:3]:
        print(f"{results['probabilities'][0, index]:.3f}  {labels[index]}")
