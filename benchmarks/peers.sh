#!/usr/bin/env bash
# The other BEATs implementations, in an environment of their own: build/peers. They are named one by one, without what
# they depend on: left to itself, pip brings a CUDA build of PyTorch and several cloud clients, gigabytes in all.
#
#     benchmarks/peers.sh            with PYTHON=python3.12, say, for another Python (AVEX: 3.11 to 3.13)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
env=build/peers

"$python" -m venv --clear "$env" 2>/dev/null || {
  rm -rf "$env"
  "$python" -m pip install -q virtualenv
  "$python" -m virtualenv -q "$env"
}
pip=("$env/bin/python" -m pip install -q)

"${pip[@]}" -c constraints.txt torch
"${pip[@]}" -c constraints.txt numpy scipy soundfile tqdm packaging requests pyyaml huggingface_hub  # what they share
"${pip[@]}" -c constraints.txt hyperpyyaml joblib sentencepiece  # SpeechBrain
"${pip[@]}" -c constraints.txt h5py pydantic pydantic-settings fsspec gcsfs s3fs  # AVEX: what `import avex` looks for
"${pip[@]}" --no-deps torchaudio==2.11.0 speechbrain==1.1.2 openbeats==0.1.1
"${pip[@]}" --no-deps avex==1.4.0 || echo "AVEX was left out; it needs Python 3.11 to 3.13." >&2

# SpeechBrain and OpenBEATs need torchaudio's Kaldi features only, which are plain Python. Its compiled part is made for
# one build of PyTorch and fails to load beside another; where it is absent, torchaudio does without.
rm -f "$env"/lib/python*/site-packages/torchaudio/lib/*.so

for name in speechbrain.lobes.models.beats avex.models.beats openbeats; do
  if why=$("$env/bin/python" -c "import $name" 2>&1); then
    echo "$name: ready"
  else
    echo "$name: cannot be imported: ${why##*$'\n'}"
  fi
done
